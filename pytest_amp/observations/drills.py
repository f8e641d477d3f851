"""What the drills provoked: overflows, two loss scales, micro-batches, and a resume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Overflow:
    """How the amp arm dealt with one loss that was made infinite, up to the scaler's `update()`.

    Attributes:
        reached: the numbers of the optimizers that stepped, or would have, on non-finite gradients.
        changed: by optimizer, the parameters and state that changed although the overflow reached
            it.
        ruined: the parameters that are not finite after the update.
        ruined_later: the parameters that are not finite a few steps later.
        skipped: the optimizers that took no step.
        left_out: whether the training step itself left the optimizers out, and the scale stayed.
        backward: whether a backward pass that adds to gradients began at the infinite loss.
        backward_at: the user's line that called it.
        hidden: whether such a pass began, optimizers nevertheless stepped on finite gradients, and
            the scale stayed.
        cleared_at: the user's line that made these gradients finite.
        moves: for each `step()` of a scheduler without arguments, its optimizer's number.
        scale: the loss scale before, and after the update; None if there was no update.
        next_loss_finite: whether the following step's loss was finite.
        recovered: whether one of the next few steps was taken.
        ruined_at: the user's line that first wrote inf or NaN into one of either.
        raised: what the scaler raised meanwhile.
        raised_at: the user's line of the call that it refused.
        died: what the step itself raised, with its type; None if it went on.
        died_at: the user's line on which it did.
    """

    reached: tuple[int, ...] = ()
    changed: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    ruined: tuple[str, ...] = ()
    ruined_later: tuple[str, ...] = ()
    skipped: tuple[int, ...] = ()
    left_out: bool = False
    backward: bool = False
    backward_at: str | None = None
    hidden: bool = False
    cleared_at: str | None = None
    moves: tuple[int, ...] = ()
    scale: tuple[float, float | None] = (0.0, None)
    next_loss_finite: bool = True
    recovered: bool = True
    ruined_at: str | None = None
    raised: str | None = None
    raised_at: str | None = None
    died: str | None = None
    died_at: str | None = None


@dataclass(frozen=True)
class OverflowDrill:
    """The overflows that were provoked.

    Attributes:
        optimizers: the optimizers' class names, in the order of their numbers.
        moves: the schedulers' moves in a step that nothing was done to.
        overflows: what happened at each overflow.
    """

    optimizers: tuple[str, ...]
    moves: tuple[int, ...]
    overflows: tuple[Overflow, ...]


@dataclass(frozen=True)
class GradientAtTwoScales:
    """A gradient at its optimizer's first step, as the optimizer sees it at two loss scales.

    Attributes:
        optimizer: the optimizer's number.
        parameter: the parameter's path.
        difference: the norm of the difference / the larger of the two norms.
        ratio: the norm at the higher scale / the norm at the lower; None if a norm is zero.
        noise: the difference between two builds at the same scale.
    """

    optimizer: int
    parameter: str
    difference: float
    ratio: float | None
    noise: float = 0.0


@dataclass(frozen=True)
class TwoScales:
    """The amp arm at two loss scales, with its autocast regions in float32.

    Attributes:
        scales: the higher and the lower loss scale.
        optimizers: the optimizers' class names, in the order of their numbers.
        gradients: the gradients at each optimizer's first step.
        backwards: how many backward passes there were.
        unscaled: how many of them began at a loss that was the same at both scales.
        in_half: whether gradients flowed in float16 nevertheless, where they may have underflowed.
        loss_differs: whether the loss itself, as the step returns it, depends on the scale.
        edited_at: by optimizer, the user's line that changed its gradients while they were scaled.
        derived_at: the user's line that computed gradients for its own use.
    """

    scales: tuple[float, float]
    optimizers: tuple[str, ...]
    gradients: tuple[GradientAtTwoScales, ...]
    backwards: int = 0
    unscaled: int = 0
    in_half: bool = False
    loss_differs: bool = False
    edited_at: Mapping[int, str] = field(default_factory=dict)
    derived_at: str | None = None


@dataclass(frozen=True)
class AccumulatedGradient:
    """A gradient to which several backward passes have added, at its optimizer's first step.

    Attributes:
        parameter: the parameter's path.
        share: its norm / the norm of all gradients together, in the fp32 arm.
        passes: how many backward passes added to it since it was empty, in fp32 and in amp.
        errors: by how much its direction is off that of the sum of what these passes brought,
            likewise: the norm of what is not along the sum / the norm.
        ratio: amp's norm / fp32's norm.
        cosine: the cosine between the two.
        rounding: by how much the directions of both arms' sums differ, which is autocast's work.
    """

    parameter: str
    share: float
    passes: tuple[int, int]
    errors: tuple[float, float]
    ratio: float
    cosine: float
    rounding: float = 0.0


@dataclass(frozen=True)
class Accumulated:
    """How micro-batches add up in both arms.

    Attributes:
        gradients: the gradients that both arms' optimizers saw.
        edited_at: the user's line that first changed one of amp's gradients before the step.
        emptied_at: the user's line that emptied amp's gradients between backward passes.
        backward_at: the user's line of amp's last backward pass.
        steps: how many of the user's steps it took, in fp32 and in amp.
    """

    gradients: tuple[AccumulatedGradient, ...] = ()
    edited_at: str | None = None
    emptied_at: str | None = None
    backward_at: str | None = None
    steps: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class LeftOut:
    """Something whose state a checkpoint does not bring back, and what follows from that alone.

    Attributes:
        kind: "scaler", "optimizer", "scheduler", "model", or "other".
        name: its class name.
        in_checkpoint: whether the checkpoint holds it, and nevertheless not all of its state.
        losses: the losses of the steps that follow, without the interruption and after it.
        differences: by how much the steps' losses differ, relative to the larger.
        scales: a scaler's loss scale when the checkpoint is saved, and after the resume.
        state: by how much its state differs in the end: the norm of the difference / the norm.
    """

    kind: str
    name: str
    in_checkpoint: bool = False
    losses: tuple[tuple[float, float], ...] = ()
    differences: tuple[float, ...] = ()
    scales: tuple[float, float] | None = None
    state: float = 0.0


@dataclass(frozen=True)
class Resume:
    """A run that goes on from the user's checkpoint, beside one without an interruption.

    Attributes:
        after: the steps before the checkpoint.
        left_out: what the checkpoint does not bring back.
        noise: by how much losses differ after a resume that brings everything back.
        state_noise: the same of the states in the end.
    """

    after: int
    left_out: tuple[LeftOut, ...] = ()
    noise: float = 0.0
    state_noise: float = 0.0
