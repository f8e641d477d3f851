"""What the laboratory saw, as frozen values: the raw material that judge/ concludes from.

Nothing here imports torch. A record holds what happened, never what it means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Losses = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Start:
    """Where an arm started: digests by value of its parameters and of its first module's inputs.

    None where there was no optimizer, or no module, to look at. `parameter_samples`,
    `input_samples`: the norm of each, and sums that change as its elements do. `devices`: those
    that the trained parameters are on. `shared`: whether it trained with an optimizer of a former
    arm.
    """

    parameters: tuple[str, ...] | None = None
    inputs: tuple[str, ...] | None = None
    devices: tuple[str, ...] = ()
    shared: bool = False
    parameter_samples: tuple[tuple[float, ...], ...] = ()
    input_samples: tuple[tuple[float, ...], ...] = ()


Phase = Literal["forward", "backward", "recompute", "update"]


@dataclass(frozen=True)
class OpRow:
    """Calls of one operator that are alike.

    `module`: the path of the module that made the call, in a backward pass of the one whose
    gradient it is; None outside of modules. `phase`: "recompute" is a forward pass that a backward
    pass repeats, "update" an optimizer's step. `dtype` and `out`: of the first floating point
    tensor that goes in and comes out. `autocast`: whether it was in force where the step called.
    `chosen`: whether the step itself asked for float32, by a region that is switched off within one
    that is not, by a cast up that it calls, or by one whose result no weight then meets.
    `function`: the custom autograd function that it is part of. `flops`, `bytes` (made) and
    `largest` (bytes of the largest output): of all `count` calls. `stretch`: how many times its
    memory the most expanded input is large. `dims`: the dimensions of matrix products.
    `location`: the user's line that made the first call, as file:line. `seconds`: of all calls,
    where the device is done when they return.
    """

    op: str
    dtype: str
    out: str | None = None
    module: str | None = None
    phase: Phase = "forward"
    autocast: bool = False
    function: str | None = None
    count: int = 1
    flops: int = 0
    bytes: int = 0
    largest: int = 0
    stretch: int = 1
    dims: tuple[int, ...] = ()
    location: str | None = None
    chosen: bool = False
    seconds: float = field(default=0.0, compare=False)

    @property
    def is_cast(self) -> bool:
        """Whether it only copies a tensor into another dtype."""
        return self.op == "aten::_to_copy" and self.out is not None and self.out != self.dtype


@dataclass(frozen=True)
class Operators:
    """One inspected step, counted by dtype name.

    `flops_by_dtype`: matmul, convolution and attention FLOPs by the dtype that was computed in.
    `bytes_by_dtype`: bytes of the floating point tensors that operators made.
    `unknown`: heavy operators without a FLOP formula. `hidden`: what ran out of sight altogether.
    `hidden_reduced`: whether any of these may have computed in reduced precision.
    `random_dtypes`: dtypes in which random numbers were drawn.
    `draws`: digests of those numbers, in order; None where they were not looked at.
    `autocast_entered`: how often an enabled autocast region was entered. `autocast_devices`: the
    device types that any regions were for, switched on or off. `framework`: the library whose
    training loop it was, as its package is called.
    `reduced_weights`: whether weights that are kept in reduced precision took part.
    `rows`: the calls, one row for all that are alike. `stale`: modules that computed with casts of
    weights from before an update. `backward_under_autocast`: how many backward passes began inside
    an autocast region. `backward_scale`: by how much the loss that backward was called on is larger
    than the one that the step returned; None where that can't be told.
    """

    flops_by_dtype: Mapping[str, int] = field(default_factory=dict)
    bytes_by_dtype: Mapping[str, int] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    hidden_reduced: bool = False
    random_dtypes: frozenset[str] = frozenset()
    draws: tuple[str, ...] | None = None
    autocast_entered: int = 0
    autocast_devices: tuple[str, ...] = ()
    framework: str | None = None
    reduced_weights: bool = False
    rows: tuple[OpRow, ...] = ()
    stale: tuple[str, ...] = ()
    backward_under_autocast: int = 0
    backward_scale: float | None = None

    @property
    def flops(self) -> int:
        return sum(self.flops_by_dtype.values())

    def reduced_flops(self) -> int:
        return sum(self.flops_by_dtype.get(dtype, 0) for dtype in REDUCED)

    def reduced_bytes(self) -> int:
        return sum(self.bytes_by_dtype.get(dtype, 0) for dtype in REDUCED)


REDUCED = ("float16", "bfloat16")

# Packages that enter autocast themselves, where a switch of theirs says so.
FRAMEWORKS = ("accelerate", "ignite", "lightning", "pytorch_lightning", "transformers")


@dataclass(frozen=True)
class Parameter:
    """A trained parameter. `name`: its path, where a module that was called has it.

    `has_gradient`: whether it had one at any step of its optimizer.
    """

    dtype: str
    has_gradient: bool
    name: str | None = None


@dataclass(frozen=True)
class ScalerStep:
    """One `step()` of an enabled GradScaler: on which optimizer, by its number, at which scale.

    `step`: in which step of the experiment, from 0.
    """

    step: int
    optimizer: int
    scale: float
    skipped: bool


@dataclass(frozen=True)
class ScalerUse:
    """What enabled GradScalers did in a run, and the schedulers beside them.

    `optimizers`: their kinds, in the order of their first steps, which numbers them. `scaled`: how
    often losses were scaled. `updates_in_midst`: of the updates, those between backward passes that
    add to the same gradients; `updates_before_step`: those between a backward pass and a scaler's
    step on its gradients. `made_in_steps`: enabled scalers that were made while steps ran. `moves`:
    each plain `step()` of a scheduler, as the experiment's step and the optimizer's number, -1
    where that one never stepped.
    """

    optimizers: tuple[str, ...] = ()
    scaled: int = 0
    updates: int = 0
    updates_in_midst: int = 0
    updates_before_step: int = 0
    made_in_steps: int = 0
    steps: tuple[ScalerStep, ...] = ()
    moves: tuple[tuple[int, int], ...] = ()

    @property
    def live(self) -> bool:
        """Whether an enabled scaler took part."""
        return bool(self.scaled or self.steps)

    @property
    def first_moves(self) -> dict[int, int]:
        """By the optimizer's number, the step in which its scheduler moved for the first time."""
        return {number: step for step, number in reversed(self.moves)}


@dataclass(frozen=True)
class ParityRun:
    """One arm alone in memory for `steps` steps: losses, peak, scaler, and one inspected step.

    `stalled`: whether a GradScaler skipped every step of the last quarter. `moved`: whether the
    trained parameters ended elsewhere than they started; None without any. `parameters`: those, in
    the order in which optimizers first stepped. `levels`: bytes that the arm holds after each step;
    `held`: at the end, by kind (parameters, gradients, optimizer state). `fastest_step_s`:
    seconds of the fastest step, as the host sees it.
    """

    losses: Losses
    start: Start = Start()
    peak_bytes: int | None = None
    reserved_bytes: int | None = None
    peak_unknown: str | None = None
    levels: tuple[int, ...] = ()
    held: Mapping[str, int] = field(default_factory=dict)
    scales: tuple[float, ...] = ()
    skipped_steps: int = 0
    stalled: bool = False
    moved: bool | None = None
    operators: Operators | None = None
    parameters: tuple[Parameter, ...] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)
    scaler: ScalerUse = ScalerUse()
    fastest_step_s: float = 0.0


@dataclass(frozen=True)
class Floor:
    """A second fp32 run from the same seed, nudged by one ulp of the amp dtype on the way.

    `before_nudge`: how many steps ran before the nudge; up to there it must repeat the first run.
    All of them, where no optimizer said in time what there is to nudge.
    `other_stream`: whether random numbers were drawn from a second stream after the nudge.
    """

    losses: Losses
    start: Start
    before_nudge: int
    other_stream: bool


@dataclass(frozen=True)
class Timing:
    """Paired blocks: seconds per step of each block, fp32 and amp by pair.

    `stopped`: why the sampling ended ("decided", "precise" or "budget"). `one_resident`: the arms
    did not fit in memory together and were rebuilt for every block. `skipping_pairs`: how many
    pairs were left out because a GradScaler skipped steps in them. `busy_s`: how long the
    accelerator works in one amp step; None on a CPU, or where it can't be told.
    """

    fp32_step_s: tuple[float, ...]
    amp_step_s: tuple[float, ...]
    block_steps: int
    stopped: str
    elapsed_s: float
    one_resident: bool = False
    skipping_pairs: int = 0
    busy_s: float | None = None

    @property
    def ratios(self) -> tuple[float, ...]:
        return tuple(f / a for f, a in zip(self.fp32_step_s, self.amp_step_s, strict=True))


@dataclass(frozen=True)
class Gradient:
    """A parameter's gradient in the amp arm's first step, beside the fp32 arm's.

    `parameter`: its number among the trained ones. `cosine`: between the two; `ratio`: of their
    norms, amp to fp32. `zeroed`: the share of elements that are zero in amp and not in fp32.
    `share`: of the norm of all fp32 gradients together.
    """

    parameter: int
    cosine: float
    ratio: float
    zeroed: float
    share: float
    name: str | None = None


@dataclass(frozen=True)
class ModuleOutput:
    """What a module returned first in the amp arm, beside the fp32 arm's.

    `distance`: of a sample, relative to fp32's norm. `largest`: magnitude in the fp32 arm.
    """

    module: str
    distance: float
    largest: float


@dataclass(frozen=True)
class Numerics:
    """The first step of the two arms, side by side; modules in the order of their first calls."""

    gradients: tuple[Gradient, ...] = ()
    outputs: tuple[ModuleOutput, ...] = ()


@dataclass(frozen=True)
class Origin:
    """The first operator whose output was not finite though its inputs were."""

    step: int
    op: str
    module: str | None


@dataclass(frozen=True)
class Overflow:
    """What the amp arm did with one loss that was made infinite, up to the scaler's `update()`.

    `reached`: the optimizers (by number) that stepped, or were to, on gradients that are not
    finite. `changed`: what changed of these all the same, by optimizer. `ruined`: parameters that
    are not finite after the update, and `ruined_later` a few steps on. `skipped`: the optimizers
    that took no step. `left_out`: whether the step itself took none, and the scale did not go down.
    `backward`:
    whether a backward pass that adds to gradients began at that loss. `hidden`: whether one did,
    an optimizer stepped on finite gradients, and the scale did not go down. `moves`: for each plain
    `step()` of a scheduler the number of its optimizer. `scale`: before, and after the update; None
    where there was none. `next_loss_finite`: of the step that followed. `recovered`: whether one of
    the next few was not skipped. `raised`: what the scaler raised on the way.
    """

    reached: tuple[int, ...] = ()
    changed: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    ruined: tuple[str, ...] = ()
    ruined_later: tuple[str, ...] = ()
    skipped: tuple[int, ...] = ()
    left_out: bool = False
    backward: bool = False
    hidden: bool = False
    moves: tuple[int, ...] = ()
    scale: tuple[float, float | None] = (0.0, None)
    next_loss_finite: bool = True
    recovered: bool = True
    raised: str | None = None


@dataclass(frozen=True)
class OverflowDrill:
    """Overflows on purpose. `moves`: those of schedulers in a step that nothing was done to."""

    optimizers: tuple[str, ...]
    moves: tuple[int, ...]
    overflows: tuple[Overflow, ...]


@dataclass(frozen=True)
class GradientAtTwoScales:
    """A gradient as its optimizer (by number) sees it at its first step, at two loss scales.

    `difference`: the norm of the difference by the larger norm. `ratio`: the norm at the higher
    scale by that at the lower; None where a norm is zero. `noise`: the difference between two
    builds at one scale.
    """

    optimizer: int
    parameter: str
    difference: float
    ratio: float | None
    noise: float = 0.0


@dataclass(frozen=True)
class TwoScales:
    """The amp arm at two loss scales, its autocast regions in float32.

    `backwards`: how many backward passes there were, and `unscaled`: how many of them began at a
    loss that was the same at both scales. `in_half`: whether gradients flowed in float16 all the
    same, where they may have underflowed.
    """

    scales: tuple[float, float]
    optimizers: tuple[str, ...]
    gradients: tuple[GradientAtTwoScales, ...]
    backwards: int = 0
    unscaled: int = 0
    in_half: bool = False


@dataclass(frozen=True)
class Observations:
    """Everything that was seen of one test."""

    device: str
    dtype: str
    native_support: bool
    fp32: ParityRun
    amp: ParityRun
    floor: Floor
    timing: Timing | None = None
    nonfinite_origin: Origin | None = None
    device_type: str = "cpu"
    numerics: Numerics = Numerics()
    overflow: OverflowDrill | None = None
    two_scales: TwoScales | None = None
