"""What GradScalers, and the schedulers beside them, did in a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ScalerStep:
    """One `step()` of an enabled GradScaler.

    Attributes:
        step: the step of the experiment, from 0.
        optimizer: the optimizer's number.
        scale: the loss scale at that time.
        skipped: whether the scaler skipped the optimizer's step.
    """

    step: int
    optimizer: int
    scale: float
    skipped: bool


@dataclass(frozen=True)
class ScalerUse:
    """What enabled GradScalers, and the schedulers beside them, did in a run.

    Scalers that are off take part by `scale_calls_when_off` alone.

    Attributes:
        optimizers: the optimizers' class names. Their order, that of their first steps, numbers
            them.
        scaled: how often a loss was scaled.
        updates: how often a scaler was updated.
        updates_in_midst: the updates between backward passes that add to the same gradients.
        updates_before_step: the updates between a backward pass and a scaler's step on its
            gradients.
        made_in_steps: how many enabled scalers were created while steps ran.
        made_at: the user's line that created the last of them; otherwise the one that created the
            scaler that scaled first, if the step has one of its own.
        scaled_at: the user's line that first scaled a loss.
        growth_interval: after how many steps that scaler's scale grows.
        steps: the scalers' steps, in order.
        moves: each `step()` of a scheduler without arguments, as the experiment's step and the
            optimizer's number; -1 if that optimizer never stepped.
        moved_at: the user's line on which a scheduler moved, by its optimizer's number.
        updated_at: the user's line of the first update that was in the midst or too early.
        scale_calls_when_off: how often the step handed a loss to a scaler that is off.
        most_passes: the most backward passes between two steps of one optimizer, scaler or not.
    """

    optimizers: tuple[str, ...] = ()
    scaled: int = 0
    updates: int = 0
    updates_in_midst: int = 0
    updates_before_step: int = 0
    made_in_steps: int = 0
    made_at: str | None = None
    scaled_at: str | None = None
    growth_interval: int | None = None
    steps: tuple[ScalerStep, ...] = ()
    moves: tuple[tuple[int, int], ...] = ()
    scale_calls_when_off: int = 0
    moved_at: Mapping[int, str] = field(default_factory=dict)
    updated_at: str | None = None
    most_passes: int = 0

    @property
    def live(self) -> bool:
        """Whether an enabled scaler took part."""
        return bool(self.scaled or self.steps)

    @property
    def first_moves(self) -> dict[int, int]:
        """The step in which each optimizer's scheduler first moved, by the optimizer's number."""
        return {number: step for step, number in reversed(self.moves)}
