"""The numbers of both arms side by side: gradients, outputs, and where they part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

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
