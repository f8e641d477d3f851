"""The runs of the arms: how they started and trained, the noise floor, and the timed blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pytest_amp.observations.machine import Disturbance, Machine
from pytest_amp.observations.operators import Operators
from pytest_amp.observations.scaler import ScalerUse

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


@dataclass(frozen=True)
class Parameter:
    """A trained parameter.

    Attributes:
        dtype: the name of its dtype.
        has_gradient: whether it had a gradient at any step of its optimizer.
        name: its path, if a module that was called owns it.
        location: the user's line of the forward operator that first used it, if one was seen.
        optimizer: the number of the optimizer that holds it.
        size: how many numbers it has.
    """

    dtype: str
    has_gradient: bool
    name: str | None = None
    location: str | None = None
    optimizer: int = 0
    size: int = 0


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
        compiled: how many graphs torch.compile made for it.
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
    scaler: ScalerUse = field(default_factory=ScalerUse)
    fastest_step_s: float = 0.0
    nonfinite_state: tuple[str, ...] = ()
    losses_at_last_scale: Losses = field(default_factory=dict)
    optimizers: tuple[OptimizerUse, ...] = ()
    modules: Mapping[str, str] = field(default_factory=dict)
    checkpoint: tuple[str, ...] | None = None
    checkpoint_at: str | None = None
    compiled: int = 0

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
class SeedRun:
    """Both arms, run from another seed.

    Attributes:
        seed: the seed.
        fp32: the fp32 arm.
        amp: the amp arm.
    """

    seed: int
    fp32: ParityRun
    amp: ParityRun


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
        machine: what the test had of the machine, and what other work took of it.
        alone_s: seconds per step of one more block of each arm, which ran alone behind a pause;
            None if there was none.
        alone_taken: what other work took from these two blocks; empty if nobody counts.
        traced: whether Python was traced, as coverage does, or profiled. Nothing was traced while
            this was timed.
    """

    fp32_step_s: tuple[float, ...]
    amp_step_s: tuple[float, ...]
    block_steps: int
    stopped: str
    elapsed_s: float
    one_resident: bool = False
    skipping_pairs: int = 0
    busy_s: float | None = None
    machine: Machine | None = None
    alone_s: tuple[float, float] | None = None
    alone_taken: tuple[Disturbance, ...] = ()
    traced: bool = False

    @property
    def ratios(self) -> tuple[float, ...]:
        """The speedup that each pair shows: fp32 step time / amp step time."""
        return tuple(f / a for f, a in zip(self.fp32_step_s, self.amp_step_s, strict=True))
