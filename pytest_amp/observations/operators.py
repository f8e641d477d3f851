"""The inspected step: the calls of its operators, its autocast regions, and where casts went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

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
        composite: what the call is part of that other devices or builds may run as a single kernel:
            "attention", "rnn", "dropout" or "rms_norm"; in a backward pass, the forward call.
        count: how many calls there were.
        flops: their FLOPs.
        moved: the bytes of floating point numbers that they read and wrote, each tensor once.
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
        part_of: the calls of the composite that they are part of: the number of each, and the dtype
            that it returned.
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
    composite: str | None = None
    count: int = 1
    flops: int = 0
    moved: int = 0
    bytes: int = 0
    largest: int = 0
    stretch: int = 1
    dims: tuple[int, ...] = ()
    location: str | None = None
    chosen: bool = False
    lacks_autocast: bool = False
    computed: bool = False
    part_of: tuple[tuple[int, str], ...] = ()
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

    def float8_flops(self) -> int:
        """Return the FLOPs that ran in a float8 dtype."""
        return sum(n for dtype, n in self.flops_by_dtype.items() if dtype.startswith("float8"))

    def reduced_bytes(self) -> int:
        """Return the bytes that were allocated in a reduced dtype."""
        return sum(self.bytes_by_dtype.get(dtype, 0) for dtype in REDUCED)


REDUCED = ("float16", "bfloat16")
# Packages that enter autocast themselves if one of their own switches says so.
FRAMEWORKS = ("accelerate", "ignite", "lightning", "pytorch_lightning", "transformers")
