"""Compute the float32 steps in float64, as far as that can be done from outside."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.dispatch import DispatchMode, written_into
from pytest_amp.lab.watch.draws import draws, may_draw
from pytest_amp.lab.watch.tensors import floats, tensors_in

__tracebackhide__ = unless_our_bug

_DROPOUT = torch.ops.aten.native_dropout.default
_TO_COPY = torch.ops.aten._to_copy.default
# Operators whose rates, counts of steps and scales have to be float32, whatever they write into.
_KEEPING_FLOAT32 = ("aten::_fused_", "aten::_amp_")
# Operators that make random numbers of no tensor, and those that draw by one and do nothing else.
_FACTORIES = frozenset({"rand", "randn", "normal"})
_DRAWN_FROM = frozenset(
    {"rand_like", "randn_like", "randint_like", "bernoulli", "multinomial", "normal", "poisson"}
)


class Float64:
    """Computes steps in float64: their parameters, and everything that follows from them.

    Parameters and buffers are widened where they are first used, and inputs where they meet one;
    they keep their values. A cast to float32 is left out. Random numbers are drawn in float32 and
    widened, so that they are those of a float32 run.
    """

    def __init__(self) -> None:
        self._widened: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = []

    @contextmanager
    def active(self) -> Iterator[None]:
        """Compute what runs inside in float64."""
        before = torch.get_default_dtype()
        hook = register_module_forward_pre_hook(self._widen_module)
        torch.set_default_dtype(torch.float64)
        try:
            with _SeenLeaves(self._widen_leaf), _Promoted():  # type: ignore[no-untyped-call]
                yield
        finally:
            torch.set_default_dtype(before)
            hook.remove()

    def undo(self) -> None:
        """Put back what was widened, with the values that it had: others may share it."""
        for tensor, data, gradient in self._widened:
            tensor.grad = None  # of another dtype than the data that follow
            tensor.data, tensor.grad = data, gradient

    def _widen_module(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        """Widen what a module holds, and the tensors that it is called with."""
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            self._widen(tensor)
        return tuple(arg.double() if _is_floating(arg) else arg for arg in args)

    def _widen_leaf(self, tensor: torch.Tensor) -> None:
        """Widen a parameter that no module has, before autograd records its dtype."""
        if tensor.requires_grad and tensor.is_leaf:
            self._widen(tensor)

    def _widen(self, tensor: torch.Tensor) -> None:
        if tensor.dtype is not torch.float32 or not tensor.is_leaf:
            return
        if is_traceable_wrapper_subclass(tensor):
            raise NotImplementedError(f"a {type(tensor).__name__} can't be widened from outside")
        gradient = tensor.grad
        self._widened.append((tensor, tensor.data, gradient))
        tensor.data = tensor.data.double()
        if gradient is not None:
            tensor.grad = gradient.double()


class _SeenLeaves(TorchFunctionMode):
    """Calls a function with each tensor that a function of torch's is called with."""

    def __init__(self, seen: Callable[[torch.Tensor], None]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and _drops_on_a_device(args, kwargs):
            raise NotImplementedError("fused attention draws other random numbers in float64")
        if getattr(func, "__name__", "") != "__get__":  # to read an attribute uses nothing
            for each in tensors_in((args, kwargs)):
                self._seen(each)
        return func(*args, **kwargs)


def _drops_on_a_device(args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Return whether a call of torch's attention draws random numbers on an accelerator."""
    query = kwargs["query"] if "query" in kwargs else args[0]
    rate = args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)
    return bool(rate) and query.device.type != "cpu"


class _Promoted(DispatchMode):
    """Runs an operator in float64 if an operand is; what it writes into decides first."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not hasattr(func, "_schema"):  # a higher-order operator
            return func(*args, **kwargs)
        written = set(map(id, written_into(func, args, kwargs)))
        if may_draw(func) and draws(func, args, kwargs):
            return _drawn_in_float32(func, args, kwargs, written)
        if func._schema.name.startswith(_KEEPING_FLOAT32):
            args, kwargs = _cast((args, kwargs), torch.float32, written)
            return func(*args, **kwargs)
        leaves = floats((args, kwargs))
        deciding = [each for each in leaves if id(each) in written] or leaves
        if any(each.dtype is torch.float64 for each in deciding):
            args, kwargs = _cast((args, kwargs), torch.float64, written)
            if func is _TO_COPY and kwargs.get("dtype") is torch.float32:
                kwargs = {**kwargs, "dtype": torch.float64}
        elif written:
            args, kwargs = _cast((args, kwargs), torch.float32, written)
        return func(*args, **kwargs)


def _is_floating(value: Any) -> TypeGuard[torch.Tensor]:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _cast(tree: Any, dtype: torch.dtype, but: Collection[int] = ()) -> Any:
    """Cast the floating point tensors in a tree, but for those with these ids."""

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if _is_floating(tensor) and id(tensor) not in but else tensor

    return pytree.tree_map_only(torch.Tensor, cast, tree)


def _drawn_in_float32(func: Any, args: Any, kwargs: Any, written: set[int]) -> Any:
    """Draw what a float32 run would draw, and widen it.

    Raises:
        NotImplementedError: the operator does more to its operands than to draw.
    """
    name = func._schema.name.partition("::")[2]
    wide = [each for each in floats((args, kwargs)) if each.dtype is torch.float64]
    if func is _DROPOUT and wide:  # its first operand is dropped, and keeps its digits
        values, rate, *_ = args
        _, kept = func(values.float(), *args[1:], **kwargs)
        return values * kept / (1 - rate if rate < 1 else 1), kept
    if not wide:
        if name in _FACTORIES and kwargs.get("dtype") is None:
            return func(*args, **{**kwargs, "dtype": torch.float32}).double()
        return func(*args, **kwargs)
    fills_itself = name.endswith("_") and written == {id(args[0])}
    if not fills_itself and name not in _DRAWN_FROM:
        raise NotImplementedError(f"{name} draws random numbers and computes in one")
    copies = {id(each): each.float() for each in wide}

    def narrow(tensor: torch.Tensor) -> torch.Tensor:
        return copies.get(id(tensor), tensor)

    narrow_args, kwargs = pytree.tree_map_only(torch.Tensor, narrow, (args, kwargs))
    drawn = func(*narrow_args, **kwargs)
    if not fills_itself:
        return _cast(drawn, torch.float64)
    return drawn if drawn is args[0] else args[0].copy_(drawn)
