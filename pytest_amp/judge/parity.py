"""Decide whether two loss curves end at the same place, apart from rounding."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from pytest_amp.observations import Floor, Losses, Observations, ParityRun
from pytest_amp.results.values import ArmRun, tail_start


@dataclass(frozen=True)
class TailComparison:
    """The means of two curves' tails.

    Attributes:
        key: the loss's name.
        amp: the amp arm's mean.
        fp32: the fp32 arm's mean.
    """

    key: str
    amp: float
    fp32: float

    @property
    def absolute(self) -> float:
        """The difference as |amp - fp32|."""
        return abs(self.amp - self.fp32)

    @property
    def difference(self) -> float:
        """The difference as |amp - fp32| / |fp32|; infinite if only fp32 is zero."""
        if self.absolute == 0:
            return 0.0
        return self.absolute / abs(self.fp32) if self.fp32 else math.inf

    def excess(self, relative: float, atol: float) -> float:
        """Return the difference as a multiple of what is allowed; above 1 is too much.

        What is allowed is `atol` + `relative` * |fp32|.
        """
        allowed = atol + relative * abs(self.fp32)
        if self.absolute == 0:
            return 0.0
        if not math.isfinite(self.absolute):
            return math.inf
        return self.absolute / allowed if allowed else math.inf


def once_scaled(run: ParityRun) -> Losses:
    """Return the losses without the overflows that the search for a loss scale provoked.

    The scaler skipped those steps, so they did no harm: a loss that contains scaled gradients, such
    as a gradient penalty, overflows along with them. Each is replaced by the loss of the same step
    at the scale that was found. If that is not finite either, the scale had no part in it.
    """
    return {
        key: (*_first_finite(curve, run.losses_at_last_scale.get(key, ())),)
        for key, curve in run.losses.items()
    }


def _first_finite(curve: tuple[float, ...], again: tuple[float, ...]) -> Iterator[float]:
    for loss, other in zip_longest(curve, again, fillvalue=math.nan):
        yield other if math.isfinite(other) and not math.isfinite(loss) else loss


def overflowed_while_looking(run: ParityRun) -> int:
    """Return how many first steps hold all overflows of the loss before any step was taken; or 0.

    These are the steps that `ParityRun.losses_at_last_scale` has to show.
    """
    taken = [step.step for step in run.scaler.steps if not step.skipped]
    looking = [step.step for step in run.scaler.steps if step.step < min(taken, default=0)]
    lost = [s for s in looking if not all(math.isfinite(curve[s]) for curve in run.losses.values())]
    return max(lost, default=-1) + 1


def compare(fp32: Losses, amp: Losses) -> tuple[TailComparison, ...]:
    """Compare the two arms' tails, key by key.

    An amp curve that is not finite at any step has NaN as its tail: what it recovered to says
    nothing.
    """
    return tuple(
        TailComparison(
            key,
            tail_mean(amp[key]) if all(map(math.isfinite, amp[key])) else math.nan,
            tail_mean(fp32[key]),
        )
        for key in fp32
    )


def drift(fp32: Losses, floor: Floor, key: str) -> float:
    """Return how far the model drifts from itself under rounding, in units of the loss.

    It is the largest difference at any step of the second half. The means of two tails can meet by
    chance, but the losses of all their steps can't. It is infinite unless both runs stay finite
    there: a model that rounding can push out of range has no bound.
    """
    plain, nudged = fp32[key], floor.losses[key]
    half = max(floor.before_nudge, len(plain) // 2)
    return _largest_difference(plain[half:], nudged[half:])


def rounding(fp32: Losses, rounded: Losses, key: str) -> float:
    """Return how far rounding every product to the amp dtype moves the loss, in its units.

    Like `drift`, it is the largest difference at any step of the second half.
    """
    half = len(fp32[key]) // 2
    return _largest_difference(fp32[key][half:], rounded[key][half:])


def _largest_difference(ones: Sequence[float], others: Sequence[float]) -> float:
    differences = [abs(a - b) for a, b in zip(ones, others, strict=True)]
    return max(differences, default=0.0) if all(map(math.isfinite, differences)) else math.inf


def noise_floor(fp32: Losses, floor: Floor, key: str) -> float:
    """Return the drift relative to the mean of the fp32 curve's tail."""
    largest, scale = drift(fp32, floor, key), abs(tail_mean(fp32[key]))
    if largest == 0:
        return 0.0
    return largest / scale if scale and math.isfinite(scale) else math.inf


def first_nonfinite(losses: Losses, baseline: Losses) -> int | None:
    """Return the first step whose loss is not finite although the baseline's is, or None."""
    steps = [
        step
        for key in losses
        for step, (loss, base) in enumerate(zip(losses[key], baseline[key], strict=True))
        if not math.isfinite(loss) and math.isfinite(base)
    ]
    return min(steps, default=None)


def lost_finiteness_at(seen: Observations, step: int) -> bool:
    """Return whether the amp loss of a step is not finite, and AMP301 has begun to say so."""
    first = first_nonfinite(once_scaled(seen.amp), seen.fp32.losses)
    finite = all(
        math.isfinite(x) for curve in seen.amp.losses.values() for x in curve[step : step + 1]
    )
    return first is not None and first <= step and not finite


def tail_means(arm: ArmRun | None) -> dict[str, float]:
    """Return the `tail_mean` of each of an arm's losses, by name; {} without an arm."""
    curves = arm.losses_by_key if arm else {}
    return {name: tail_mean(curve) for name, curve in curves.items() if curve}


def tail_mean(losses: Sequence[float]) -> float:
    """Return the mean of the last quarter of a curve; NaN if any loss in it is not finite."""
    tail = losses[tail_start(len(losses)) :]
    if not all(map(math.isfinite, tail)):
        return math.nan
    return math.fsum(loss / len(tail) for loss in tail)  # the sum itself may be out of range
