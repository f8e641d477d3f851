"""AMP4xx: why mixed precision is not faster."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from pytest_amp import units
from pytest_amp.judge.case import Case
from pytest_amp.observations import REDUCED, OpRow
from pytest_amp.rules.base import Word, rule

# The shares of the step from which a pattern is worth reporting.
FALLBACK = 0.2
CASTS = 0.4
IDLE = 0.5
SLOW = 0.2
# A step that moves less is bound by calls rather than bytes. Only a test's model is that small.
LEAST_BYTES = 8 * 2**20
# FLOPs per byte that is cast, above which matrix products are nearly all of a step's work.
PRODUCTS = 128
# The shares from which round trips through float32 matter: of the peak, and of the bytes made.
# A model of which they hold less is a test's.
HELD = 0.05
LEAST_HELD = 16 * 2**10
MOVED = 0.2
TILE = 8


@rule("AMP401")
def no_native_support(case: Case) -> Iterator[Word]:
    """Look for a device without a fast path for the dtype.

    The rule speaks only if AMP was slower or the speed gate failed: otherwise no harm is shown.
    """
    gate = case.gates["speedup"]
    slower = gate.high is not None and gate.high < 1
    if case.seen.native_support or not (slower or gate.verdict == "fail"):
        return
    yield Word(
        f"{case.seen.device} has no fast path for {case.seen.dtype}, which is emulated "
        f"({units.ratio(gate.value)}): gate the speed on a device that has one, with "
        "min_speedup by device",
        {"device": case.seen.device, "dtype": case.seen.dtype, "speedup": gate.value},
    )


@rule("AMP402")
def fp32_fallback(case: Case) -> Iterator[Word]:
    """Look for matrix products, a fifth of the forward FLOPs or more, that autocast does not cover.

    If autocast is in force and a product runs in float32 nevertheless, the kernel requires it, as
    attention with dropout does on a CPU, and the author can't change it. If the step itself asks
    for float32, the product was not forgotten.
    """
    if case.seen.recipes.amp.autocast_dtype is None:  # of what that leaves wide, AMP108 speaks
        return
    rows = [row for row in _rows(case, "forward") if row.flops]
    total = sum(row.flops for row in rows)
    outside = [row for row in rows if row.dtype == "float32" and not row.autocast]
    kept = [row for row in outside if not (row.chosen or row.lacks_autocast)]  # see AMP110
    share = sum(row.flops for row in kept) / total if total else 0.0
    if share < FALLBACK or len(outside) == len(rows):  # all of it is AMP101
        return
    kept.sort(key=lambda row: -row.flops)
    yield Word(
        f"{units.share(share)} of the forward FLOPs stay in float32, outside of any autocast "
        f"region, most of them in {_place(kept[0])}: cover them, or show that this is on "
        "purpose with a region that is switched off around them (enabled=False)",
        {"share": share, "where": [_place(row) for row in kept[:5]]},
        module=kept[0].module,
        location=kept[0].location,
    )


@rule("AMP403")
def cast_bound(case: Case) -> Iterator[Word]:
    """Look for casts that are 40% or more of the bytes that the amp arm's operators make.

    The rule is silent if the step is measurably faster, or is nearly all matrix products: then
    casts do not matter.
    """
    low, operators = case.gates["speedup"].low, case.seen.amp.operators
    if low is not None and low > 1:
        return
    rows = [row for row in _rows(case) if row.phase != "update"]
    total, casts = sum(row.bytes for row in rows), [row for row in rows if row.is_cast]
    share = sum(row.bytes for row in casts) / total if total >= LEAST_BYTES else 0.0
    cast_bytes = sum(row.bytes for row in casts)
    if share < CASTS or (operators and operators.flops > PRODUCTS * cast_bytes):
        return
    most = max(casts, key=lambda row: row.bytes)
    yield Word(
        f"{units.share(share)} of the bytes that the amp arm makes are casts "
        f"({units.plural(sum(row.count for row in casts), 'cast')}), most of them in "
        f"{_place(most)}: with so little work per weight, casting costs more than it saves; use "
        "larger batches, or keep this part in one dtype",
        {"share": share, "casts": sum(row.count for row in casts)},
        module=most.module,
        location=most.location,
    )


@rule("AMP404")
def host_bound(case: Case) -> Iterator[Word]:
    """Look for an accelerator that is idle during half of an amp step or more.

    The rule speaks only if the speed gate failed or is undecided, since the small models of fast
    tests all look like this.
    """
    gate, timing = case.gates["speedup"], case.seen.timing
    if timing is None or timing.busy_s is None or gate.verdict not in ("fail", "inconclusive"):
        return
    step_s = statistics.median(timing.amp_step_s)
    idle = 1 - timing.busy_s / step_s
    if idle < IDLE:
        return
    yield Word(
        f"the accelerator works for {units.duration(timing.busy_s)} of an amp step of "
        f"{units.duration(step_s)} and waits {units.share(idle)} of it for Python, data or "
        "synchronisation (.item(), .cpu(), print): faster kernels can't shorten that; use larger "
        "batches, torch.compile, CUDA graphs or fused optimizers, and look for what waits",
        {"busy_s": timing.busy_s, "step_s": step_s, "idle": idle},
    )


@rule("AMP405")
def slow_shapes(case: Case) -> Iterator[Word]:
    """Look for sizes that are not multiples of 8, which tensor cores run slowly in 16-bit types.

    A fifth of the reduced FLOPs or more has to be affected.
    """
    if case.seen.rules_of != "cuda" or not case.seen.native_support:
        return
    rows = [
        row for row in _rows(case) if row.flops and row.dtype in REDUCED and row.phase != "update"
    ]
    total = sum(row.flops for row in rows)
    odd = [row for row in rows if any(size > TILE and size % TILE for size in row.dims)]
    share = sum(row.flops for row in odd) / total if total else 0.0
    if share < SLOW:
        return
    most = max(odd, key=lambda row: row.flops)
    sizes = [size for size in most.dims if size > TILE and size % TILE]
    yield Word(
        f"{units.share(share)} of the reduced FLOPs have dimensions that are not multiples of "
        f"{TILE} ({', '.join(map(str, sizes[:3]))} in {_place(most)}), which tensor cores run at a "
        f"fraction of their speed: pad them, for example to {-(-sizes[0] // TILE) * TILE}",
        {"share": share, "dims": sizes},
        module=most.module,
        location=most.location,
    )


@rule("AMP406")
def wasted_casts(case: Case) -> Iterator[Word]:
    """Look for casts up to float32 whose results are only cast down again.

    They have to hold 5% of the amp arm's peak (and 16 KiB) when its backward pass begins, or to be
    a fifth of the bytes that it makes without being measurably faster. What works out of sight may
    need them.
    """
    operators, peak = case.seen.amp.operators, case.seen.amp.peak_bytes
    if operators is None or operators.hidden or not operators.round_trips:
        return
    trips = operators.round_trips
    held = sum(trip.held for trip in trips)
    moved, total = sum(trip.bytes for trip in trips), sum(operators.bytes_by_dtype.values())
    low = case.gates["speedup"].low
    is_slow = total >= LEAST_BYTES and moved >= MOVED * total and not (low is not None and low > 1)
    if not (is_slow or (peak and held >= max(HELD * peak, LEAST_HELD))):
        return
    most = max(trips, key=lambda trip: (trip.held, trip.bytes))
    count = sum(trip.count for trip in trips)
    share = f" ({units.share(held / peak)} of the amp arm's peak)" if peak else ""
    yield Word(
        "values are cast to float32 and only cast down again before they are used "
        f"({units.plural(count, 'cast')}): the copies take {units.size(moved)} in each step, and "
        f"{units.size(held)}{share} of them are kept for the backward pass; leave that cast out, "
        "since autocast casts what needs it",
        {"casts": count, "bytes": moved, "held": held},
        module=most.module,
        location=most.location,
    )


def _rows(case: Case, phase: str | None = None) -> Sequence[OpRow]:
    operators = case.seen.amp.operators
    return [row for row in (operators.rows if operators else ()) if phase in (None, row.phase)]


def _place(row: OpRow) -> str:
    """Say where a row comes from: ``aten::mm in layers.0 (net.py:12)``."""
    module = f" in {row.module}" if row.module else ""
    return f"{row.op}{module}{f' ({row.location})' if row.location else ''}"
