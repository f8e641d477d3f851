"""Frozen records of what the laboratory saw: the raw material that `judge` draws conclusions from.

Nothing here imports torch. A record holds what happened, never what it means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Losses = Mapping[str, tuple[float, ...]]


class Named(NamedTuple):
    """A name that a function of the user's has for a value, at a moment.

    Attributes:
        file: the function's file.
        line: the line at which it is.
        name: the name.
    """

    file: str
    line: int
    name: str


@dataclass(frozen=True)
class Start:
    """The state in which an arm started.

    Digests and samples are taken by value, so that arms can be compared without keeping tensors.

    Attributes:
        parameters: a digest of each trained parameter; None if there was no optimizer.
        inputs: a digest of each input of the first module; None if no module was called.
        devices: the devices that the trained parameters are on.
        shared: whether the arm trained with an optimizer of an earlier arm.
        parameter_samples: the norm of each parameter, followed by signed sums of its elements.
        input_samples: the same of each input.
        inputs_at: the user's line that called the first module.
        inputs_named: what the user's functions called the first of its inputs at that moment.
        inputs_made_at: the user's line that gave them that name, where it was looked for.
    """

    parameters: tuple[str, ...] | None = None
    inputs: tuple[str, ...] | None = None
    devices: tuple[str, ...] = ()
    shared: bool = False
    parameter_samples: tuple[tuple[float, ...], ...] = ()
    input_samples: tuple[tuple[float, ...], ...] = ()
    inputs_at: str | None = None
    inputs_named: tuple[Named, ...] = ()
    inputs_made_at: str | None = None


Phase = Literal["forward", "backward", "recompute", "update"]


@dataclass(frozen=True)
class OpRow:
    """The calls of one operator that are alike.

    Sums and maxima are taken over all `count` calls.

    Attributes:
        op: the operator's qualified name, such as ``aten::mm``.
        dtype: the dtype of the first floating point input.
        out: the dtype of the first floating point output; None if there is none.
        module: the path of the calling module; None outside of modules. In a backward pass it is
            the module whose forward pass is being differentiated.
        phase: "recompute" is a forward pass that a backward pass repeats; "update" is an
            optimizer's step.
        autocast: whether autocast was in force at the call; in a backward pass, at the forward
            call.
        function: the custom autograd function that the call is part of.
        count: how many calls there were.
        flops: their FLOPs.
        bytes: the bytes of the outputs that they allocated.
        largest: the bytes of the largest single output.
        stretch: how often the most expanded input repeats its memory; 1 if none is expanded.
        dims: the dimensions of matrix products that a kernel's alignment depends on.
        location: the user's line that made the first call, as ``file:line``; in a backward pass,
            the line of the forward call.
        chosen: whether the step itself asked for float32. It did if the call is in a region that is
            switched off for its device, if it is an explicit cast up, or if it works outside of any
            region on values that were cast up, and on no weight.
        lacks_autocast: whether another thread made the call, outside of any region, although
            autocast was in force where the thread got its work from.
        computed: of a cast, whether autocast cast what the model had computed: a value that
            gradients flow through, or one that was read from a weight.
        seconds: the host's time until the calls returned. It measures the work only on a device
            that is done by then, as a CPU is.
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
    lacks_autocast: bool = False
    computed: bool = False
    seconds: float = field(default=0.0, compare=False)

    @property
    def is_cast(self) -> bool:
        """Whether the operator only copies a tensor into another dtype."""
        return self.op == "aten::_to_copy" and self.out is not None and self.out != self.dtype


@dataclass(frozen=True)
class Region:
    """An autocast region that the inspected step entered; each line's regions are one.

    Attributes:
        location: the user's line that entered it.
        device: the device type that it is for.
        dtype: the dtype that it casts to; None if it is switched off.
        nested: whether it was entered inside of one that was switched on.
        flops: the FLOPs of the forward pass that ran in it, and in none within it.
        bytes: the bytes of floating point tensors that were made there.
    """

    location: str | None
    device: str
    dtype: str | None
    nested: bool = False
    flops: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class StaleCast:
    """A weight's cast that was used after the weight's update.

    Attributes:
        module: the module that used it.
        weight: the weight's path, if a module that was called owns it.
        location: the user's line that used it.
        region: the line that entered the outermost autocast region, if the cast was made in the
            same one.
    """

    module: str
    weight: str | None = None
    location: str | None = None
    region: str | None = None


@dataclass(frozen=True)
class StateUpdate:
    """What one line of the user's did to reduced tensors that are older than the step.

    Attributes:
        dtype: the tensors' dtype.
        location: the line of the update.
        elements: their elements.
        wanted: those that the update would have changed if it had not been rounded.
        lost: those of these that are what they were.
    """

    dtype: str
    location: str | None = None
    elements: int = 0
    wanted: int = 0
    lost: int = 0


@dataclass(frozen=True)
class RoundTrip:
    """The casts up of one line of the user's whose results were only cast down again.

    Attributes:
        location: the line.
        module: the module of the first of them.
        count: how many there were.
        bytes: the bytes of what they and the casts down made.
        held: the bytes of these that were alive when a backward pass began, beside what would have
            been there without them.
    """

    location: str | None = None
    module: str | None = None
    count: int = 0
    bytes: int = 0
    held: int = 0


@dataclass(frozen=True)
class Operators:
    """One inspected step, with totals by the names of dtypes.

    The totals leave optimizers' updates out; `rows` has them too.

    Attributes:
        flops_by_dtype: FLOPs of matrix products, convolutions and attention, by the dtype of their
            input.
        bytes_by_dtype: bytes of the floating point tensors that operators allocated.
        unknown: heavy operators that have no FLOP formula.
        hidden: work that no dispatch mode sees, such as a CUDA graph.
        hidden_reduced: whether anything unknown or hidden may have computed in reduced precision.
        random_dtypes: the dtypes in which random numbers were drawn.
        draws: a digest of each draw, in order; None if draws were not looked at.
        dropout_rates: the probabilities with which elements were dropped, each once.
        autocast_entered: how often an enabled autocast region was entered.
        autocast_devices: the device types that regions were for, whether switched on or off.
        framework: the package whose training loop ran the step, if it is a known one.
        reduced_weights: whether weights that are kept in reduced precision were multiplied.
        rows: the calls, grouped into one row for all that are alike.
        stale: for each module that computed with a weight's cast from before the weight's update,
            the first such cast.
        backward_at: the user's line that began the first backward pass.
        backward_under_autocast: how many backward passes began inside an autocast region.
        backward_under_autocast_at: the user's line that began the first of them.
        backward_scale: how many times larger the loss was when backward was called on it than when
            the step returned it; None if that can't be told.
        updates: what the step, rather than an optimizer, did to reduced tensors that it found
            there.
        round_trips: what was cast up, and used for nothing but to be cast down again.
        regions: the autocast regions, in the order in which they were first entered.
        draws_at: the user's line of each of the draws.
        dropout_at: the user's line of the first draw that dropped elements.
    """

    flops_by_dtype: Mapping[str, int] = field(default_factory=dict)
    bytes_by_dtype: Mapping[str, int] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    hidden_reduced: bool = False
    random_dtypes: frozenset[str] = frozenset()
    draws: tuple[str, ...] | None = None
    dropout_rates: tuple[float, ...] = ()
    autocast_entered: int = 0
    autocast_devices: tuple[str, ...] = ()
    framework: str | None = None
    reduced_weights: bool = False
    rows: tuple[OpRow, ...] = ()
    stale: tuple[StaleCast, ...] = ()
    backward_at: str | None = None
    backward_under_autocast: int = 0
    backward_under_autocast_at: str | None = None
    backward_scale: float | None = None
    updates: tuple[StateUpdate, ...] = ()
    round_trips: tuple[RoundTrip, ...] = ()
    regions: tuple[Region, ...] = ()
    draws_at: tuple[str | None, ...] = ()
    dropout_at: str | None = None

    @property
    def flops(self) -> int:
        """The FLOPs of the step in all dtypes."""
        return sum(self.flops_by_dtype.values())

    @property
    def main_reduced_dtype(self) -> str | None:
        """The reduced dtype that most FLOPs ran in; None if none did."""
        amounts = {dtype: self.flops_by_dtype.get(dtype, 0) for dtype in REDUCED}
        return max(amounts, key=amounts.__getitem__) if any(amounts.values()) else None

    def reduced_flops(self) -> int:
        """Return the FLOPs that ran in a reduced dtype."""
        return sum(self.flops_by_dtype.get(dtype, 0) for dtype in REDUCED)

    def reduced_bytes(self) -> int:
        """Return the bytes that were allocated in a reduced dtype."""
        return sum(self.bytes_by_dtype.get(dtype, 0) for dtype in REDUCED)


REDUCED = ("float16", "bfloat16")

# Packages that enter autocast themselves if one of their own switches says so.
FRAMEWORKS = ("accelerate", "ignite", "lightning", "pytorch_lightning", "transformers")


@dataclass(frozen=True)
class Parameter:
    """A trained parameter.

    Attributes:
        dtype: the name of its dtype.
        has_gradient: whether it had a gradient at any step of its optimizer.
        name: its path, if a module that was called owns it.
        location: the user's line of the forward operator that first used it, if one was seen.
        optimizer: the number of the optimizer that holds it.
    """

    dtype: str
    has_gradient: bool
    name: str | None = None
    location: str | None = None
    optimizer: int = 0


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


@dataclass(frozen=True)
class OptimizerUse:
    """How an optimizer trained.

    Attributes:
        name: its class name.
        settings: its hyperparameters at its first step, as text, by name.
        location: the user's line of that step.
        made_at: the user's line that made it.
        rates: the first group's learning rate at each step, taken or skipped; None if it is not a
            plain number.
    """

    name: str
    settings: Mapping[str, str] = field(default_factory=dict)
    location: str | None = None
    rates: tuple[float | None, ...] = ()
    made_at: str | None = None


@dataclass(frozen=True)
class ParityRun:
    """One arm, run alone in memory, and one inspected step of it.

    Attributes:
        losses: the loss curves, one value per step.
        start: the state in which the arm started.
        peak_bytes: the peak of allocated memory above the level before the arm was built; None if
        it is not known.
        reserved_bytes: the peak of what the allocator reserved; None on a CPU.
        peak_unknown: why the peak is not known although the device has a counter.
        levels: the bytes that the arm holds after each step.
        held: the bytes held at the end by parameters, gradients and optimizer state.
        scales: the loss scale after each update.
        skipped_steps: how many steps a GradScaler skipped.
        stalled: whether a GradScaler skipped every step of the last quarter.
        moved: whether the trained parameters ended elsewhere than they started; None without any.
        operators: the inspected step.
        parameters: the trained parameters, in the order in which optimizers first stepped on them.
        flags: the global switches in force at the end.
        scaler: what scalers and schedulers did.
        fastest_step_s: seconds of the fastest step, as the host sees it.
        nonfinite_state: the parameters and buffers that are not finite at the end.
        optimizers: how each optimizer trained, in the order of their numbers.
        modules: what each module says of itself, by its path: its class, its settings, its mode.
        losses_at_last_scale: the losses of the first steps again, from the scale that was found, if
            they were not finite while it was looked for; empty otherwise.
        checkpoint: the names of what the user's checkpoint holds; None if nobody said.
        checkpoint_at: the user's line that said so.
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
    nonfinite_state: tuple[str, ...] = ()
    losses_at_last_scale: Losses = field(default_factory=dict)
    optimizers: tuple[OptimizerUse, ...] = ()
    modules: Mapping[str, str] = field(default_factory=dict)
    checkpoint: tuple[str, ...] | None = None
    checkpoint_at: str | None = None

    def stepped_at(self, number: int) -> str | None:
        """Return the user's line on which an optimizer stepped, if it is known."""
        return self.optimizers[number].location if number < len(self.optimizers) else None

    def place_of(self, parameter: Parameter) -> str | None:
        """Return the user's line that uses a parameter, or else the one that trains it."""
        if parameter.location is not None:
            return parameter.location
        known = self.optimizers[parameter.optimizer :][:1]
        return known[0].made_at or known[0].location if known else None

    def line_in(self, module: str | None) -> str | None:
        """Return the user's line of the first operator of a module, or of one within it."""
        rows = self.operators.rows if self.operators and module else ()
        within = f"{module}."
        return next(
            (
                row.location
                for row in rows
                if row.location and row.module and f"{row.module}.".startswith(within)
            ),
            None,
        )


@dataclass(frozen=True)
class Floor:
    """A second fp32 run from the same seed, nudged by one ulp of the amp dtype on the way.

    Attributes:
        losses: the loss curves, one value per step.
        start: the state in which the run started.
        before_nudge: how many steps ran before the nudge; up to there it must repeat the first run.
            If no optimizer stepped in time to show what can be nudged, it is all steps.
        other_stream: whether random numbers came from a second stream after the nudge.
    """

    losses: Losses
    start: Start
    before_nudge: int
    other_stream: bool


@dataclass(frozen=True)
class Timing:
    """The timed pairs of blocks.

    Attributes:
        fp32_step_s: seconds per step of each pair's fp32 block.
        amp_step_s: seconds per step of each pair's amp block.
        block_steps: how many steps a block has.
        stopped: why sampling ended: "decided", "precise" or "budget".
        elapsed_s: seconds that timing took.
        one_resident: whether the arms did not fit in memory together and were rebuilt for each
            block.
        skipping_pairs: how many pairs were left out because a GradScaler skipped steps in them.
        busy_s: seconds that the accelerator works in one amp step; None if unknown, as on a CPU.
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
        """The speedup that each pair shows: fp32 step time / amp step time."""
        return tuple(f / a for f, a in zip(self.fp32_step_s, self.amp_step_s, strict=True))


# By dtype, the `Gradient.error` from which on a gradient needs an explanation.
UNEXPLAINED_FROM = {"float16": 0.05, "bfloat16": 0.15}


@dataclass(frozen=True)
class Gradient:
    """A parameter's gradient in the amp arm's first step, compared with the fp32 arm's.

    Attributes:
        parameter: the parameter's number among the trained ones.
        cosine: the cosine between the two gradients.
        ratio: amp's norm / fp32's norm.
        zeroed: the share of elements that are zero under amp, among those that are not in fp32.
        share: this gradient's fp32 norm / the norm of all fp32 gradients together.
        name: the parameter's path, if it is known.
        rounding: the `error` of fp32's own gradient if every product is rounded to the dtype that
            amp's ran in; None if that was not looked at.
        zeroed_by_rounding: the same of `zeroed`.
    """

    parameter: int
    cosine: float
    ratio: float
    zeroed: float
    share: float
    name: str | None = None
    rounding: float | None = None
    zeroed_by_rounding: float | None = None

    @property
    def error(self) -> float:
        """The norm of the two gradients' difference / fp32's norm."""
        cosine = 0.0 if math.isnan(self.cosine) else self.cosine  # one of them is zero
        square = 1 + self.ratio**2 - 2 * self.ratio * cosine
        return math.sqrt(max(square, 0.0))


@dataclass(frozen=True)
class ModuleOutput:
    """What a module first returned in the amp arm, compared with the fp32 arm.

    Attributes:
        module: the module's path.
        distance: the norm of the difference over a sample, relative to fp32's norm.
        largest: the largest magnitude in the fp32 arm's output.
    """

    module: str
    distance: float
    largest: float


# What is off by more times what rounding all products does is not off by that alone. In healthy
# steps gradients are off by 1.0 times as much, up to 2.4 in small transformers; in faulty ones by
# 170 times and more (tests/catalogue).
TIMES_ROUNDING = 4
Sample = tuple[float, ...]


@dataclass(frozen=True)
class Computed:
    """An operator of a forward pass, and samples of what it took and made.

    Attributes:
        op: the operator's name.
        shape: the shape of its first output.
        dtype: the dtype of its first output.
        module: the module that called it; None outside of modules.
        location: the user's line that called it.
        out: a sample of its first output: the norm, and some elements. It is empty if the output
            does not consist of floats.
        inputs: a sample of each tensor and each float that it took.
        made_at: the user's lines that made these tensors since the last matrix products.
        products: the lines of these products.
    """

    op: str
    shape: tuple[int, ...]
    dtype: str
    module: str | None
    location: str | None
    out: Sample
    inputs: tuple[Sample, ...] = ()
    made_at: tuple[str, ...] = ()
    products: tuple[str, ...] = ()


@dataclass(frozen=True)
class Departure:
    """The first operator of the amp arm whose output left fp32's although its inputs had not.

    In a backward pass, the first node whose gradients did although those that it was given had not.

    Attributes:
        op: the operator's name; in a backward pass the forward operator whose gradient it is.
        module: the module that called it; None outside of modules.
        location: the user's line that called it.
        dtype: the dtype of its output.
        off: how far its output is from fp32's, in proportion to the norm of that.
        inputs_off: how far its inputs are off at most.
        rounding: how far fp32's own output moves if all products are rounded; None if unknown.
        made_at: the user's lines that made its inputs since the last matrix products.
        products: the lines of these products.
        node: the name of the backward pass's node; None in a forward pass.
    """

    op: str
    module: str | None
    location: str | None
    dtype: str
    off: float
    inputs_off: float
    rounding: float | None = None
    made_at: tuple[str, ...] = ()
    products: tuple[str, ...] = ()
    node: str | None = None

    @property
    def by_a_product(self) -> str | None:
        """The line of the product whose rounding, by itself, takes fp32 as far away; or None."""
        explained = self.rounding is not None and self.off <= TIMES_ROUNDING * self.rounding
        return self.products[0] if explained and self.products else None

    @property
    def place(self) -> str | None:
        """The line to look at."""
        return self.by_a_product or self.location


@dataclass(frozen=True)
class Numerics:
    """The first step of both arms, side by side.

    Attributes:
        gradients: the trained parameters' gradients.
        outputs: what modules returned, in the order of their first calls.
        departure: the operator at which the forward passes part, if there is one.
        lines: the user's lines that call operators in the amp arm's forward passes.
        inputs_off: how far the inputs of a line's operators are off at most in the forward pass.
    """

    gradients: tuple[Gradient, ...] = ()
    outputs: tuple[ModuleOutput, ...] = ()
    departure: Departure | None = None
    lines: tuple[str, ...] = ()
    inputs_off: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """The first operator whose output was not finite though its inputs were.

    Attributes:
        step: the step of the experiment, from 0.
        op: the operator's name. In a backward pass it is the forward operator whose gradient was
            being computed.
        module: the module that called it; None outside of modules.
        location: the user's line that called it. In the backward pass of a custom function it is
            the line there.
        dtype: the dtype of what was not finite.
        phase: "kept" says that the backward pass was finite, and what it was added to was not.
        node: the name of the backward pass's node; None in a forward pass.
        made: "inf" or "NaN".
        inputs: the operator's inputs at the first element that was not finite, if it works element
            by element.
        largest: the largest magnitude among its inputs.
        scale: the loss scale, where a scaler that is stuck was looked at.
        at_one: whether it happens at a loss scale of 1 too, if that was tried.
    """

    step: int
    op: str
    module: str | None
    location: str | None = None
    dtype: str | None = None
    phase: Literal["forward", "backward", "kept"] = "forward"
    node: str | None = None
    made: Literal["inf", "NaN"] = "inf"
    inputs: tuple[float, ...] = ()
    largest: float | None = None
    scale: float | None = None
    at_one: bool | None = None


@dataclass(frozen=True)
class Zeroed:
    """Where, on the way back, a gradient first turned to zero that does not in the fp32 arm.

    Attributes:
        op: the forward operator whose gradient it is.
        module: the module that called it; None outside of modules.
        location: the user's line that called it.
        node: the name of the backward pass's node.
        lost: the share that is zero, of what is not zero in the fp32 arm. A cast, which that arm
            lacks, is compared with what it was given.
        expected: the median magnitude that the gradient should have had, at amp's loss scale.
    """

    op: str | None
    module: str | None
    location: str | None
    node: str
    lost: float
    expected: float


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


@dataclass(frozen=True)
class Observations:
    """Everything that was seen of one test.

    Attributes that are not plain figures:
        nonfinite_origin: where the amp loss stopped being finite.
        stuck_origin: where gradients stop being finite, if the GradScaler keeps skipping steps.
        zeroed: where gradients turn to zero, if many do in the amp arm alone.
        gradients_left: where gradients leave fp32's, if they do and the forward pass did not.
        accumulated: how micro-batches add up, where there are several to one step.
        resume: what follows from the user's checkpoint, where there is one.
        state_origin: where the inf or NaN came from that the amp arm's state ends with.
        kept_at: the user's line that makes what an amp step keeps, if memory grows.
    """

    device: str
    dtype: str
    native_support: bool
    fp32: ParityRun
    amp: ParityRun
    floor: Floor
    timing: Timing | None = None
    nonfinite_origin: Origin | None = None
    stuck_origin: Origin | None = None
    zeroed: Zeroed | None = None
    gradients_left: Departure | None = None
    device_type: str = "cpu"
    numerics: Numerics = Numerics()
    overflow: OverflowDrill | None = None
    two_scales: TwoScales | None = None
    rounded: Losses | None = None
    accumulated: Accumulated | None = None
    resume: Resume | None = None
    state_origin: Origin | None = None
    kept_at: str | None = None
