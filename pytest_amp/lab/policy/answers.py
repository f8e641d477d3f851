"""Ask the installed torch what autocast does on CUDA with each operator that it knows.

The kernels of CUDA's autocast are in every build of torch, and the lists that they make up change
between versions. So they are asked: each operator is called with stand-ins that say they are on
CUDA and hold nothing, and what is done to them before the operator itself runs is the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal

import torch
from torch.utils import _pytree as pytree

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.machine.aside import aside
from pytest_amp.lab.policy.regions import set_state

__tracebackhide__ = unless_our_bug

Answer = Literal["lower", "float32", "result", "promote", "refused", "unchanged"]
"""What happens to an operator's floating-point tensors, doubles left out: they are cast to the
reduced dtype; to float32; the result alone is made float32, by the argument `dtype`; to the widest
among them; autocast raises; nothing."""

ON_CUDA = "AutocastCUDA"


def overload(name: str) -> Any:
    """Return the operator of a name such as ``aten::sum.dim_IntList``."""
    namespace, _, rest = name.partition("::")
    packet, _, kind = rest.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), kind or "default")


@cache
def operators(key: str = ON_CUDA) -> tuple[str, ...]:
    """Return the names of torch's own operators for which a key of the dispatcher has a kernel.

    Left out are those that take dimensions by their names, which only builds for CUDA have. Those
    of other packages, such as torchvision, bring kernels for the CPU that do the same.
    """
    found: list[str] = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    ours = (name for name in sorted(found) if name.startswith("aten::"))
    return tuple(name for name in ours if not _names_dimensions(overload(name)))


def _names_dimensions(op: Any) -> bool:
    arguments = op._schema.arguments
    return any(each.name == "dim" and "str" in str(each.type) for each in arguments)


@cache
def answer(name: str) -> tuple[Answer, str]:
    """Return what CUDA's autocast does with an operator, and what it says if it refuses it.

    The reduced dtype is float16 while it is asked; the answer is the same for bfloat16.
    """
    return aside(partial(_answer, overload(name)))


@torch.no_grad()
def _answer(op: Any) -> tuple[Answer, str]:
    """Ask an operator, in a thread whose autocast nobody else needs."""
    set_state("cuda", (True, torch.float16))
    wide = _asked(op, lambda _: torch.float32)
    if wide.refusal is not None:
        return "refused", wide.refusal
    if torch.float16 in wide.casts:
        return "lower", ""
    low = _asked(op, lambda _: torch.float16)
    if torch.float32 in low.casts:
        return "float32", ""
    if low.result is torch.float32:
        return "result", ""
    for odd in range(_MOST_TENSORS):
        mixed = _asked(op, partial(_mixed, odd))
        if torch.float32 in mixed.casts:
            return "promote", ""
    return "unchanged", ""


_MOST_TENSORS = 4


def _mixed(odd: int, place: int) -> torch.dtype:
    """Return float32 for one of the tensors, and float16 for the others."""
    return torch.float32 if place == odd else torch.float16


class _Ran(Exception):
    """The operator itself was reached."""


class _Asked:
    """What was seen of one call.

    Attributes:
        casts: the dtypes that tensors were cast to before the operator ran.
        result: the dtype that it was told to return; None if it was not told.
        refusal: what autocast said when it refused the operator.
    """

    def __init__(self) -> None:
        self.casts: set[torch.dtype] = set()
        self.result: torch.dtype | None = None
        self.refusal: str | None = None

    def reached(self, func: Any, args: Any, kwargs: Any) -> None:
        names = [argument.name for argument in func._schema.arguments]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        self.result = given.get("dtype")
        if given.get("half_to_float"):  # how softmax is told to
            self.result = torch.float32


class _StandIn(torch.Tensor):
    """A tensor that says that it is on CUDA, and holds nothing."""

    asked: _Asked

    @staticmethod
    def __new__(cls, asked: _Asked, dtype: torch.dtype) -> _StandIn:
        make: Any = torch.Tensor._make_wrapper_subclass
        made: _StandIn = make(cls, (2, 2), dtype=dtype, device="cuda")
        made.asked = asked
        return made

    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self = next(each for each in pytree.tree_leaves(args) if isinstance(each, _StandIn))
        if func is torch.ops.aten._to_copy.default:
            dtype = kwargs.get("dtype") or self.dtype
            self.asked.casts.add(dtype)
            return _StandIn(self.asked, dtype)
        self.asked.reached(func, args, kwargs)
        raise _Ran


def _asked(op: Any, dtype_at: Callable[[int], torch.dtype]) -> _Asked:
    """Call an operator with stand-ins, whose dtype depends on their place among the tensors."""
    asked, count = _Asked(), 0

    def stand_in() -> _StandIn:
        nonlocal count
        count += 1
        return _StandIn(asked, dtype_at(count - 1))

    args, kwargs = [], {}
    for argument in op._schema.arguments:
        value = _made_up(argument, stand_in)
        if argument.kwarg_only:
            kwargs[argument.name] = value
        else:
            args.append(value)
    try:
        op(*args, **kwargs)
    except _Ran:
        pass
    except Exception as error:  # noqa: BLE001 - the operator's own checks say nothing of autocast
        if "autocast" in str(error):
            asked.refusal = str(error)
    return asked


def _made_up(argument: Any, stand_in: Callable[[], _StandIn]) -> Any:
    """Return some value of an argument's type: its default, if it has one and is no tensor."""
    kind = str(argument.type)
    if "Tensor" not in kind and argument.has_default_value():
        return argument.default_value
    if kind == "List[Optional[Tensor]]" or "List[Tensor]" in kind:
        return [stand_in(), stand_in()]
    if "Tensor" in kind:
        return stand_in()
    if kind.startswith("Optional"):
        return None
    if kind.startswith("List[int]"):
        return [1, 1]
    return {"int": 1, "float": 1.0, "bool": False, "str": "fro", "number": 1.0}.get(kind)
