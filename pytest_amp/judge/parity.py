"""Loss parity: whether two loss curves end at the same place, beyond rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_amp.observations import Floor, Losses, ParityRun
from pytest_amp.results.values import tail_start


@dataclass(frozen=True)
class TailComparison:
    """Two curves of one key. `difference` is |a - b| / |b|, `absolute` |a - b|."""

    key: str
    amp: float
    fp32: float

    @property
    def absolute(self) -> float:
        return abs(self.amp - self.fp32)

    @property
    def difference(self) -> float:
        if self.absolute == 0:
            return 0.0
        return self.absolute / abs(self.fp32) if self.fp32 else math.inf

    def excess(self, relative: float, atol: float) -> float:
        """How far beyond what is allowed, as a multiple of it: above 1 is beyond."""
        allowed = atol + relative * abs(self.fp32)
        if self.absolute == 0:
            return 0.0
        if not math.isfinite(self.absolute):
            return math.inf
        return self.absolute / allowed if allowed else math.inf


def once_scaled(run: ParityRun) -> Losses:
    """The losses, those put right that are not finite while the GradScaler looks for its scale.

    It skipped these steps, and made no harm of them: a loss that holds scaled gradients, as with a
    gradient penalty, overflows with them. The next loss that is finite stands in their place; a
    curve without one stays as it is.
    """
    taken = [step.step for step in run.scaler.steps if not step.skipped]
    looking = {step.step for step in run.scaler.steps if step.step < min(taken, default=0)}
    return {key: _put_right(curve, looking) for key, curve in run.losses.items()}


def _put_right(curve: tuple[float, ...], looking: set[int]) -> tuple[float, ...]:
    first = next((loss for loss in curve if math.isfinite(loss)), None)
    if first is None:
        return curve
    return tuple(
        first if step in looking and not math.isfinite(loss) else loss
        for step, loss in enumerate(curve)
    )


def compare(fp32: Losses, amp: Losses) -> tuple[TailComparison, ...]:
    """The two arms' tails, key by key.

    An amp curve that is anywhere not finite has no tail: what it recovered to says nothing.
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
    """How far the model drifts from itself under rounding, in units of the loss.

    The largest step-by-step difference over the second half of the run: the means of two tails
    can meet by chance, their steps do not all. Infinite where only one of the runs, or neither,
    stays finite: a model that rounding can throw out of the range has no bound.
    """
    plain, nudged = fp32[key], floor.losses[key]
    half = max(floor.before_nudge, len(plain) // 2)
    differences = [abs(a - b) for a, b in zip(plain[half:], nudged[half:], strict=True)]
    return max(differences, default=0.0) if all(map(math.isfinite, differences)) else math.inf


def noise_floor(fp32: Losses, floor: Floor, key: str) -> float:
    """The drift relative to the fp32 tail."""
    largest, scale = drift(fp32, floor, key), abs(tail_mean(fp32[key]))
    if largest == 0:
        return 0.0
    return largest / scale if scale and math.isfinite(scale) else math.inf


def first_nonfinite(losses: Losses, baseline: Losses) -> int | None:
    """The first step at which a loss is not finite where the baseline's is; None if none is."""
    steps = [
        step
        for key in losses
        for step, (loss, base) in enumerate(zip(losses[key], baseline[key], strict=True))
        if not math.isfinite(loss) and math.isfinite(base)
    ]
    return min(steps, default=None)


def tail_mean(losses: Sequence[float]) -> float:
    tail = losses[tail_start(len(losses)) :]
    if not all(map(math.isfinite, tail)):
        return math.nan
    return math.fsum(loss / len(tail) for loss in tail)  # the sum itself may be out of range
