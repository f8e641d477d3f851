"""Decide whether a GradScaler that skips steps is still looking for a scale, or is stuck."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pytest_amp.observations import ScalerStep, ScalerUse

# After the scale has been found, one step in twenty may still overflow by itself.
STRAY_SKIPS = 2
STRAY_SHARE = 0.25
FLOOR_AFTER = 3
LEAST_SCALE = 1.0


@dataclass(frozen=True)
class Stuck:
    """A GradScaler that keeps skipping an optimizer's steps.

    Attributes:
        how: "low": the last steps are skipped at a scale below 1; "stays": they are skipped at a
            scale that does not go down; "again": many steps are skipped after a scale was found.
        optimizer: the optimizer's number.
        steps: the steps that the skips are counted in.
        since: the first of the skipped steps at the end, or the last that was skipped.
    """

    how: Literal["low", "stays", "again"]
    optimizer: int
    steps: tuple[ScalerStep, ...]
    since: ScalerStep

    @property
    def skips(self) -> int:
        """How many of the steps were skipped."""
        return _skips(self.steps)

    @property
    def scale(self) -> float:
        """The scale at the end."""
        return self.steps[-1].scale


def stuck(use: ScalerUse) -> Stuck | None:
    """Return the first optimizer whose steps are skipped for another reason than a search.

    A few skips are normal, so it takes three or more at the end at a scale that does not help, or,
    after the first step that was taken, more than two and more than a quarter of all.
    """
    for number in range(len(use.optimizers)):
        steps = tuple(step for step in use.steps if step.optimizer == number)
        if _at_the_floor(steps):
            how: Literal["low", "stays"] = "stays" if steps[-1].scale >= LEAST_SCALE else "low"
            return Stuck(how, number, steps, _first_of_the_last(steps))
        later = _after_the_first_taken(steps)
        if _skips(later) > STRAY_SKIPS and _skips(later) > STRAY_SHARE * len(later):
            last = next(step for step in reversed(later) if step.skipped)
            return Stuck("again", number, later, last)
    return None


def _at_the_floor(steps: Sequence[ScalerStep]) -> bool:
    """Return whether the last steps were all skipped, and no smaller scale would be tried."""
    tail = steps[-max(FLOOR_AFTER, len(steps) // 4) :]
    if len(tail) < FLOOR_AFTER or not all(step.skipped for step in tail):
        return False
    return tail[-1].scale < LEAST_SCALE or tail[-1].scale >= tail[0].scale


def _first_of_the_last(steps: Sequence[ScalerStep]) -> ScalerStep:
    """Return the step from which on all were skipped."""
    taken = max((index for index, step in enumerate(steps) if not step.skipped), default=-1)
    return steps[taken + 1]


def _after_the_first_taken(steps: tuple[ScalerStep, ...]) -> tuple[ScalerStep, ...]:
    first = next((i for i, step in enumerate(steps) if not step.skipped), len(steps))
    return steps[first + 1 :]


def _skips(steps: Iterable[ScalerStep]) -> int:
    return sum(step.skipped for step in steps)
