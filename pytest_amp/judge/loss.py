"""Judge the loss: whether amp trains to where fp32 does, apart from rounding."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from pytest_amp import units
from pytest_amp.judge import anchor, equivalence, parity
from pytest_amp.judge.case import Limits
from pytest_amp.observations import REDUCED, Observations, ParityRun
from pytest_amp.results.values import Gate, GateVerdict

# If the arms draw different random numbers, one run with another stream is a small sample of what
# that does to a loss. A difference up to this many times the sample is not blamed on AMP.
OTHER_STREAM_MARGIN = 2.0
# How many times what rounding does to a small loss amp may differ from fp32 without being blamed.
# Healthy regressions stay below 1; a learning rate of a third under amp gives 7 and more
# (benchmarks/small_losses.py).
ROUNDINGS = 3
# First losses that differ by less are the same but for rounding.
SAME_LOSS = 1e-5
# Among several losses, the one with the gravest verdict decides.
_GRAVITY: tuple[GateVerdict, ...] = ("not_gated", "pass", "inconclusive", "fail")


class _Judged(NamedTuple):
    """What the gate says of one loss.

    Attributes:
        verdict: of this loss.
        reason: why.
        value: the difference as |amp - fp32| / |fp32|.
        excess: the difference as a multiple of what is allowed.
        low: the least that the difference may be; None from one seed.
        high: the most that it may be.
    """

    verdict: GateVerdict
    reason: str
    value: float
    excess: float
    low: float | None = None
    high: float | None = None


def gate(seen: Observations, limits: Limits) -> Gate:
    """Return the gate of the loss difference."""
    runs = [_scaled_once(run) for run in of_seeds(seen)]
    judge = _over_seeds if seeds_differ(seen) else _of_one_seed
    worst = max(
        (judge(runs, limits, key) for key in seen.fp32.losses),
        key=lambda each: (_GRAVITY.index(each.verdict), each.excess),
    )
    return Gate(
        "loss_diff",
        limits.max_loss_diff,
        worst.value,
        worst.low,
        worst.high,
        worst.verdict,
        worst.reason,
    )


def of_seeds(seen: Observations) -> list[Observations]:
    """Return what was seen with each seed, the first of them first."""
    further = (replace(seen, seed=run.seed, fp32=run.fp32, amp=run.amp) for run in seen.seeds)
    return [seen, *further]


def seeds_differ(seen: Observations) -> bool:
    """Return whether there are further seeds, and one of them made another training.

    Where weights, inputs and the first losses are the same, what follows differs by the order in
    which a GPU's atomics add up, and by nothing that a seed decides.
    """
    first = seen.fp32
    return any(
        (run.fp32.start.parameters, run.fp32.start.inputs)
        != (first.start.parameters, first.start.inputs)
        or any(
            abs(curve[0] - first.losses[key][0]) > SAME_LOSS * abs(first.losses[key][0])
            for key, curve in run.fp32.losses.items()
        )
        for run in seen.seeds
        if run.fp32.losses != first.losses
    )


def of_hardest_seed(seen: Observations, limits: Limits) -> Observations:
    """Return what would have been seen with the seed of the largest difference alone.

    What was inspected stays the first seed's. Nobody knows the drift of another, so it is none.
    """
    alone = replace(seen, seeds=())
    if not seeds_differ(seen):
        return alone
    relative = limits.max_loss_diff or 0.0
    run = max(
        map(_scaled_once, of_seeds(seen)),
        key=lambda each: max(
            tail.excess(relative, _allowance(seen, limits, tail.key))
            for tail in parity.compare(each.fp32.losses, each.amp.losses)
        ),
    )
    if run.seed == seen.seed:
        return alone
    return replace(
        alone,
        seed=run.seed,
        fp32=replace(seen.fp32, losses=run.fp32.losses),
        amp=run.amp,
        floor=replace(seen.floor, losses=run.fp32.losses),
        anchor=None,
        rounded=None,
    )


def _scaled_once(seen: Observations) -> Observations:
    return replace(seen, amp=replace(seen.amp, losses=parity.once_scaled(seen.amp)))


def _of_one_seed(runs: Sequence[Observations], limits: Limits, key: str) -> _Judged:
    """Judge one loss by the first seed, against what rounding does to it."""
    seen, tail = runs[0], _tail(runs[0], key)
    excess = tail.excess(limits.max_loss_diff or 0.0, _allowance(seen, limits, key))
    verdict, reason = _obstacle(seen, limits, key) or _compared(seen, limits, tail, excess)
    return _Judged(verdict, reason, tail.difference, excess)


def _obstacle(seen: Observations, limits: Limits, key: str) -> tuple[GateVerdict, str] | None:
    """Return the verdict on a loss whose tails can't be compared, or need not be."""
    name, tail = _named(seen, key), _tail(seen, key)
    bad = _first_bad(seen.amp.losses[key])
    if bad is not None:
        fp32_bad = _first_bad(seen.fp32.losses[key])
        too = "" if fp32_bad is None else f", nor is fp32's at step {fp32_bad + 1}: both diverge"
        return "fail", f"the amp loss{name} is not finite at step {bad + 1}{too}"
    if limits.max_loss_diff is None:
        return "not_gated", _shown(seen, tail)
    if not math.isfinite(tail.fp32):
        return "inconclusive", (
            f"the fp32 loss{name} is not finite, so there is nothing to compare with"
        )
    moved = (seen.fp32.moved, seen.amp.moved)
    if moved == (False, False):
        skips = f" (the GradScaler skipped {seen.amp.skipped_steps})" * bool(seen.amp.skipped_steps)
        return "inconclusive", (
            f"no trained parameter moved in {units.plural(len(seen.amp.losses[key]), 'step')}"
            f"{skips}: nothing was trained, so the curves say nothing"
        )
    if seen.amp.stalled:
        return "inconclusive", (
            f"the GradScaler skipped {units.plural(seen.amp.skipped_steps, 'step')}, all of the "
            "last quarter among them: training stands still, so the curves say nothing"
        )
    if False in moved:
        still, other = ("amp", "fp32") if moved[0] else ("fp32", "amp")
        return "fail", f"the {still} arm's parameters never moved, where the {other} arm's did"
    return None


def _compared(
    seen: Observations, limits: Limits, tail: parity.TailComparison, excess: float
) -> tuple[GateVerdict, str]:
    """Hold one difference against what is allowed, and say why."""
    assert limits.max_loss_diff is not None
    shown, threshold = _shown(seen, tail), units.share(limits.max_loss_diff)
    allowance = _allowance(seen, limits, tail.key)
    if excess <= 1:
        if tail.difference <= limits.max_loss_diff:
            return "pass", f"{shown} is at most {threshold}"
        return "pass", f"{shown} is within {_allowed(seen, limits, allowance)}"
    drift = parity.drift(seen.fp32.losses, seen.floor, tail.key)
    drifts = _relative(drift, tail)
    source = "another random stream" if seen.floor.other_stream else "rounding"
    alone = f"{source} alone moves this model's loss by {drifts}"
    errors = anchor.errors(seen, tail.key)
    if tail.absolute <= drift:
        if errors is not None and anchor.is_beyond_rounding(errors):
            return "fail", f"{shown} is beyond {threshold}; {alone}, but {errors}"
        return "inconclusive", f"{shown} is beyond {threshold}, but {alone}: raise max_loss_diff"
    if draws_differ(seen.fp32, seen.amp) and tail.absolute <= OTHER_STREAM_MARGIN * drift:
        return "inconclusive", (
            f"{shown} is beyond {threshold}, but the arms drew different random numbers, which "
            f"alone moves the loss by {drifts}"
        )
    if tail.excess(limits.max_loss_diff, limits.loss_atol) <= 1:
        return "fail", (
            f"{shown} is beyond {threshold}, and beyond {_allowed(seen, limits, allowance)}"
        )
    if errors is not None and anchor.is_beyond_rounding(errors):
        return "fail", f"{shown} is beyond {threshold}; {errors}"
    return "fail", f"{shown} is beyond {threshold}; {alone}" + (f"; {errors}" if errors else "")


def _over_seeds(runs: Sequence[Observations], limits: Limits, key: str) -> _Judged:
    """Judge one loss by the mean difference over seeds, whose spread shows what chance does."""
    first, relative = runs[0], limits.max_loss_diff or 0.0
    tails, allowance = [_tail(run, key) for run in runs], _allowance(runs[0], limits, key)
    obstacles = [
        (*obstacle, run.seed, tail)
        for run, tail in zip(runs, tails, strict=True)
        if (obstacle := _obstacle(run, limits, key)) and obstacle[0] != "not_gated"
    ]
    if obstacles:
        verdict, why, number, tail = max(obstacles, key=lambda each: _GRAVITY.index(each[0]))
        excess = tail.excess(relative, allowance)
        return _Judged(verdict, f"{why} (seed {number})", tail.difference, excess)
    differences = [tail.amp - tail.fp32 for tail in tails]
    if not all(map(math.isfinite, differences)):  # which nobody gates, or there was an obstacle
        return _Judged("not_gated", _shown(first, tails[0]), tails[0].difference, math.inf)
    allowed = [allowance + relative * abs(tail.fp32) for tail in tails]
    found = equivalence.interval(differences, limits.error_rate)
    sizes = (abs(found.mean), found.least, found.most)
    fp32 = statistics.fmean(abs(tail.fp32) for tail in tails)
    value, low, high = (each / fp32 if fp32 else math.inf if each else 0.0 for each in sizes)
    mean, least, most = (units.share(each / fp32) if fp32 else f"{each:.3g}" for each in sizes)
    worst = max(range(len(runs)), key=lambda index: abs(differences[index]))
    shown = (
        f"{mean} [{least}, {most}]{_named(first, key)} over {len(runs)} seeds "
        f"({_relative(tails[worst].absolute, tails[worst])} with seed {runs[worst].seed})"
    )
    is_relative = high <= relative or not allowance
    verdict, said = _by_mean(first, limits, key, differences, allowed, is_relative=is_relative)
    excess = abs(found.mean) / (statistics.fmean(allowed) or math.inf)
    return _Judged(verdict, f"{shown}{said}", value, excess, low, high)


def _by_mean(
    first: Observations,
    limits: Limits,
    key: str,
    differences: Sequence[float],
    allowed: Sequence[float],
    *,
    is_relative: bool,
) -> tuple[GateVerdict, str]:
    """Hold the mean difference over seeds against what is allowed, and say why."""
    if limits.max_loss_diff is None:
        return "not_gated", ""
    threshold = units.share(limits.max_loss_diff)
    rate = limits.error_rate / len(first.fp32.losses)  # each of them may fail the gate
    answer = equivalence.answer(differences, allowed, rate)
    if answer == "equivalent":
        absolute = _allowed(first, limits, _allowance(first, limits, key))
        return "pass", f" is at most {threshold}" if is_relative else f" is within {absolute}"
    if answer == "different":
        errors = anchor.errors(first, key)
        also = f"; with seed {first.seed}, {errors}" if errors else ""
        return "fail", f" is beyond {threshold}{also}"
    more = equivalence.wanted(differences, allowed, rate)
    advice = f"about {more} seeds would do, if they are like these"
    return "inconclusive", (
        f" can't be told from {threshold}; {advice if more else 'raise max_loss_diff'}"
    )


def _tail(seen: Observations, key: str) -> parity.TailComparison:
    return next(
        each for each in parity.compare(seen.fp32.losses, seen.amp.losses) if each.key == key
    )


def _named(seen: Observations, key: str) -> str:
    return f" of {key!r}" if len(seen.fp32.losses) > 1 else ""


def _shown(seen: Observations, tail: parity.TailComparison) -> str:
    name = _named(seen, tail.key)
    return f"{_relative(tail.absolute, tail)}{name} ({tail.fp32:.5g} -> {tail.amp:.5g})"


def wants_anchor(seen: Observations, limits: Limits) -> bool:
    """Return whether both arms' errors against float64 would say more than the gate can.

    They do where the gate has no answer or fails, and with several seeds. They say nothing if the
    arms drew different random numbers or share an optimizer, if the reference is not float32, or if
    some operators can't be seen, which might not run in float64 either.
    """
    reference, operators = seen.recipes.fp32, seen.fp32.operators
    is_float32 = reference.dtype == reference.matmul == "float32"
    if not is_float32 or operators is None or operators.hidden:
        return False
    if draws_differ(seen.fp32, seen.amp) or seen.fp32.start.shared or seen.amp.start.shared:
        return False
    if any(
        _obstacle(_scaled_once(run), limits, key)
        for run in of_seeds(seen)
        for key in seen.fp32.losses
    ):
        return False
    return bool(seen.seeds) or gate(seen, limits).verdict != "pass"


def errors_behind_a_pass(seen: Observations, limits: Limits) -> Iterator[str]:
    """Yield a note for each loss that passes, although rounding does not explain its error."""
    if gate(seen, limits).verdict == "pass":
        for found in anchor.all_errors(seen):
            if anchor.is_beyond_rounding(found):
                yield (
                    f"the loss{_named(seen, found.key)} passes, but {found}: something other than "
                    "rounding differs between the arms"
                )


def draws_differ(fp32: ParityRun, amp: ParityRun) -> bool:
    """Return whether the amp arm drew other random numbers than fp32, because of a reduced dtype.

    Many kernels draw the same numbers in every dtype, as dropout on a CPU does. If the draws were
    not looked at, they count as different.
    """
    if amp.operators is None or not amp.operators.random_dtypes & set(REDUCED):
        return False
    draws = amp.operators.draws
    return draws is None or fp32.operators is None or draws != fp32.operators.draws


def rests_on_loss_atol(seen: Observations, limits: Limits) -> bool:
    """Return whether a loss passes by the default `loss_atol` alone.

    That default suits losses around 1. For others `Observations.rounded` has to show what the dtype
    can reach.
    """
    if limits.max_loss_diff is None or limits.loss_atol_is_chosen:
        return False
    return any(
        limits.max_loss_diff < tail.difference
        and tail.excess(limits.max_loss_diff, limits.loss_atol) <= 1
        for run in map(_scaled_once, of_seeds(seen))
        for tail in parity.compare(run.fp32.losses, run.amp.losses)
    )


def _allowance(seen: Observations, limits: Limits, key: str) -> float:
    """Return the absolute loss difference that is accepted."""
    if seen.rounded is None or limits.loss_atol_is_chosen:
        return limits.loss_atol
    rounding = parity.rounding(seen.fp32.losses, seen.rounded, key)
    return min(limits.loss_atol, ROUNDINGS * rounding)


def _allowed(seen: Observations, limits: Limits, allowance: float) -> str:
    """Say what an absolute difference is held to."""
    if allowance < limits.loss_atol:
        return (
            f"{allowance:.3g}, {ROUNDINGS} times what rounding every product to {seen.dtype} does"
        )
    return f"loss_atol={limits.loss_atol:g}"


def _relative(difference: float, tail: parity.TailComparison) -> str:
    """Format a difference as a share of the fp32 loss, or plainly if that loss is zero."""
    share = difference / abs(tail.fp32) if tail.fp32 else math.inf
    return units.share(share) if math.isfinite(share) else f"{difference:.3g}"


def _first_bad(losses: Sequence[float]) -> int | None:
    return next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
