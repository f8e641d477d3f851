"""The pointwise operators that can be repeated in float64, on samples of large tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from pytest_amp.lab.watch.flops import operator_name
from pytest_amp.lab.watch.tensors import PLAIN, memory

_POINTWISE = frozenset((
    "abs", "add", "addcdiv", "addcmul", "clamp", "clamp_max", "clamp_min", "div", "exp", "ge", "gt",
    "le", "lerp", "lt", "maximum", "minimum", "mul", "neg", "pow", "reciprocal", "rsub", "sqrt",
    "square", "sub", "where",
))  # fmt: skip
_COPIES = frozenset(("_to_copy", "clone", "copy"))
DIFFERENCES = frozenset(("add", "rsub", "sub"))
SCATTERED = frozenset(("index_add", "scatter_add"))
_REPEATED = _POINTWISE | _COPIES | SCATTERED
# Tensors up to this size are followed as a whole; of larger ones about as much as the sample.
WHOLE, SAMPLE = 2**15, 2**12


class Operator(NamedTuple):
    """An operator that is repeated.

    Attributes:
        name: its name, without what says that it works in place or on lists.
        on_lists: whether it is one of torch's ``_foreach`` operators.
        in_place: whether it writes into its first argument.
        random: whether it only draws random numbers.
    """

    name: str
    on_lists: bool
    in_place: bool
    random: bool = False


def operator(func: Any) -> Operator | None:
    """Return what is known of an operator; None if it is not repeated."""
    namespace, _, name = operator_name(func).partition("::")
    if namespace != "aten":
        return None
    on_lists, in_place = name.startswith("_foreach_"), name.endswith("_")
    base = name.removeprefix("_foreach_").removesuffix("_")
    if torch.Tag.nondeterministic_seeded in func.tags and "dropout" not in name:
        return Operator(base, False, in_place, random=True)
    return Operator(base, on_lists, in_place) if base in _REPEATED else None


def run_again(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """Call the operator of that name, which makes a new tensor; a copy is what is copied."""
    if name in _COPIES:
        return args[0]  # type: ignore[no-any-return]
    if name in ("addcmul", "addcdiv") and len(args) > 3:  # as _foreach operators are given it
        args, kwargs = args[:3], {"value": args[3]}
    return getattr(torch.ops.aten, name)(*args, **kwargs)  # type: ignore[no-any-return]


def one_by_one(args: Any, kwargs: Any) -> Iterator[tuple[Any, Any]]:
    """Take a call on lists of tensors apart."""
    for index in range(len(args[0])):

        def of(arg: Any, index: int = index) -> Any:
            return arg[index] if isinstance(arg, (list, tuple)) else arg

        yield [of(arg) for arg in args], {name: of(arg) for name, arg in kwargs.items()}


def place_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Identify a tensor by its memory and by how it views it."""
    held = memory(tensor)
    if held is None or type(tensor) not in PLAIN:
        return (id(tensor),)
    return int(held._cdata), tensor.storage_offset(), tensor.shape, tensor.stride()


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """Return floating point numbers in the widest dtype of their device."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def sampled(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return about as many elements as `SAMPLE` of a tensor that is expanded to the shape."""
    if not tensor.ndim:
        return tensor
    return tensor.expand(shape)[_which(shape)]


def _which(shape: torch.Size) -> tuple[slice, ...]:
    numel = math.prod(shape)
    if numel <= WHOLE:
        return ()
    longest = shape.index(max(shape))
    return (*(slice(None),) * longest, slice(None, None, -(-numel // SAMPLE)))
