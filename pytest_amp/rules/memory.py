"""AMP5xx: where the amp arm's memory goes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from pytest_amp import units
from pytest_amp.judge.case import Case
from pytest_amp.observations import REDUCED, OpRow, ParityRun
from pytest_amp.rules.base import Word, rule

# From this share of the peak on, a single cast is what to shrink first.
DOMINANT = 0.3
LEAST_BYTES = 2**20
# The share from which a part of the peak is named, and the share above which fixed parts dominate.
LEAST_PART = 0.05
MOSTLY = 0.6
# Growth counts if it goes on for at least this many steps, and exceeds both a scalar that the step
# keeps (a block of 512 bytes on CUDA; this package keeps none) and a share of the peak.
LEAST_RISES = 3
A_SCALAR = 512
GROWS = 1e-3


@rule("AMP503")
def cast_materialised(case: Case) -> Iterator[Word]:
    """Look for a single cast that takes 30% or more of the amp arm's peak, and at least 1 MiB.

    Casts that the step itself asks for are left out, since the author knows of them, and so are
    autocast's casts down of what the model computed: that is in float32 because a weight is, or
    because autocast keeps an operator there, and can't be made in another dtype. A cast in the
    backward pass only follows from one of the forward pass.
    """
    peak, operators = case.seen.amp.peak_bytes, case.seen.amp.operators
    casts = [
        row
        for row in (operators.rows if operators else ())
        if row.is_cast
        and row.phase in ("forward", "recompute")
        and not (row.chosen or _is_the_step_s_own(row))
        and not (row.computed and row.out in REDUCED and row.stretch == 1)
    ]
    if not casts or not peak:
        return
    largest = max(casts, key=lambda row: row.largest)
    share = largest.largest / peak
    if share < DOMINANT or largest.largest < LEAST_BYTES:
        return
    stretched = (
        f" of a tensor that is expanded {largest.stretch} times, and becomes that large"
        if largest.stretch > 1
        else ""
    )
    place = f" in {largest.module}" if largest.module else ""
    remedy = "cast it before it is expanded" if stretched else "make it in that dtype at once"
    yield Word(
        f"one cast{stretched}{place} takes {units.size(largest.largest)}, {units.share(share)} of "
        f"the amp arm's peak: {remedy}, or keep it out of the autocast region",
        {"bytes": largest.largest, "share": share, "stretch": largest.stretch},
        module=largest.module,
        location=largest.location,
    )


def _is_the_step_s_own(row: OpRow) -> bool:
    """Return whether the row casts up outside of any region, as only the step itself can ask."""
    return row.dtype in REDUCED and not row.autocast and row.phase == "forward"


@rule("AMP501")
def memory_not_reduced(case: Case) -> Iterator[Word]:
    """List the parts of the amp arm's peak if the memory gate failed.

    Without a failed gate the rule is silent: if less memory was not asked for, more is no fault.
    """
    gate, seen = case.gates["memory_reduction"], case.seen
    if gate.verdict != "fail" or not seen.amp.peak_bytes or not seen.fp32.peak_bytes:
        return
    parts = dict(seen.amp.held)
    operators = seen.amp.operators
    rows = operators.rows if operators else ()
    parts["casts"] = sum(row.bytes for row in rows if row.is_cast and row.phase == "forward")
    rest = seen.amp.peak_bytes - sum(parts.values())
    if rest > 0:
        parts["activations and workspace"] = rest
    listed = [
        f"{units.size(amount)} {kind}"
        for kind, amount in sorted(parts.items(), key=lambda part: -part[1])
        if amount >= LEAST_PART * seen.amp.peak_bytes
    ]
    fixed = sum(seen.amp.held.values()) / seen.amp.peak_bytes
    why = (
        "parameters, gradients and optimizer state stay in float32, so only a larger share of "
        "activations (a larger batch) can bring the peak down"
        if fixed > MOSTLY
        else "see that what is saved for the backward pass is in the amp dtype, and that casts do "
        "not live beside what they are casts of"
    )
    yield Word(
        f"amp's peak of {units.size(seen.amp.peak_bytes)} (fp32 "
        f"{units.size(seen.fp32.peak_bytes)}) is about {', '.join(listed)}: {why}",
        {**parts, "peak_bytes": seen.amp.peak_bytes},
    )


@rule("AMP502")
def memory_growth(case: Case) -> Iterator[Word]:
    """Look for memory that grows from step to step.

    It is an error if it grows only under AMP, and a warning if it grows in both arms.
    """
    amp, fp32 = growth(case.seen.amp), growth(case.seen.fp32)
    if not amp:
        return
    too = f", and {units.size(fp32)} in fp32" if fp32 else ", and nothing in fp32"
    yield Word(
        f"the amp arm holds {units.size(amp)} more after each step{too}: something keeps tensors "
        "(or graphs) of past steps, such as a list of losses that are not detached",
        {"bytes_per_step": amp, "fp32_bytes_per_step": fp32},
        severity="warning" if fp32 else None,
        location=case.seen.kept_at,
        no_place="no operator of torch's made what is kept",
    )


def growth(run: ParityRun) -> int:
    """Return the bytes per step by which memory grows, or 0 unless it does in every later step.

    The first half of the run is left out, since optimizers create their state and caches fill in
    it.
    """
    later = run.levels[len(run.levels) // 2 :]
    rises = [after - before for before, after in pairwise(later)]
    if len(rises) < LEAST_RISES or min(rises) <= 0:
        return 0
    rise = (later[-1] - later[0]) // len(rises)
    return rise if rise > max(A_SCALAR, GROWS * (run.peak_bytes or 0)) else 0
