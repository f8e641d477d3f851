"""Give CPU autocast regions the rules that autocast has on CUDA.

For as long as `cuda_rules` is entered, kernels of ours stand in the place of CPU autocast's. What
they reach is whatever runs inside a region: eager code, composite operators, custom functions,
checkpointing, nested and disabled regions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NoReturn
from weakref import ref

import torch
from torch.utils import _pytree as pytree

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.policy import recurrent
from pytest_amp.lab.policy.answers import Answer, answer, operators, overload
from pytest_amp.lab.watch.events import subscribed

__tracebackhide__ = unless_our_bug

_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

LSTM = "aten::lstm.input"
RECURRENT = tuple(
    f"aten::{name}.{kind}"
    for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")
    for kind in ("input", "data")
)
"""cuDNN's kernels of these take everything in the reduced dtype, and are in no CPU build."""


# On CUDA these read float16 and write float32; a CPU is taught it in `arithmetic`.
_HALF_TO_FLOAT = {
    "aten::softmax": torch.ops.aten._softmax,
    "aten::log_softmax": torch.ops.aten._log_softmax,
}


@contextmanager
def autocast_as_on_cuda() -> Iterator[None]:
    """Replace the kernels of CPU autocast by ones that do as CUDA's do."""
    casts = _Casts(casts_get_gradients())
    library = torch.library.Library("aten", "IMPL", "AutocastCPU")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that kernels are replaced is the point
            for name in operators("AutocastCPU"):
                if name not in operators():
                    library.impl(name.removeprefix("aten::"), torch.library.fallthrough_kernel)
            for name in operators():
                library.impl(name.removeprefix("aten::"), _kernel(name, casts))
            for name in RECURRENT:
                library.impl(name.removeprefix("aten::"), _kernel(name, casts, "lower"))
        with subscribed(casts_cleared=casts.around_clearing):
            yield
    finally:
        library._destroy()


@cache
def casts_get_gradients() -> bool:
    """Return whether torch makes a cast that it keeps so that gradients can flow through it.

    Older versions keep what they cast under ``torch.no_grad()`` without, and later uses get none.
    """
    weight = torch.ones(1, 1, device="cpu", requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            torch.mm(weight, weight)
        return torch.mm(weight, weight.detach().clone()).requires_grad


def _kernel(name: str, casts: _Casts, known: Answer | None = None) -> Callable[..., Any]:
    op = overload(name)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        rule, message = (known, "") if known is not None else answer(name)
        with torch._C._ExcludeDispatchKeyGuard(_CPU):
            if rule == "refused":
                _refuse(message)
            if rule == "result":
                return _typed(op)(args, kwargs)
            if rule == "unchanged":
                return op(*args, **kwargs)
            leaves, tree = pytree.tree_flatten((args, kwargs))
            target = _target(rule, leaves)
            leaves = [casts.to(target, leaf) if is_eligible(leaf) else leaf for leaf in leaves]
            args, kwargs = pytree.tree_unflatten(leaves, tree)
            if name == LSTM and recurrent.is_fused(args[0], args[1]):
                return recurrent.lstm(*args, **kwargs)
            return op(*args, **kwargs)

    return kernel


def _refuse(message: str) -> NoReturn:
    """Raise what torch raises on CUDA."""
    __tracebackhide__ = True
    raise RuntimeError(message)


def is_eligible(value: object) -> bool:
    """Return whether autocast casts it: floating-point numbers on a CPU, but no doubles."""
    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.dtype is not torch.float64
        and value.device.type == "cpu"
    )


def _target(rule: Answer, leaves: list[Any]) -> torch.dtype:
    low = torch.get_autocast_dtype("cpu")
    if rule == "lower":
        return low
    found = {leaf.dtype for leaf in leaves if is_eligible(leaf)}
    if rule == "float32" or torch.float32 in found:
        return torch.float32
    if found - {low}:
        _refuse("Unexpected floating ScalarType in at::autocast::prioritize")
    return low


@cache
def _typed(op: Any) -> Callable[[Any, Any], Any]:
    """Return what calls an operator so that it returns float32, unless a dtype is given."""
    names = [argument.name for argument in op._schema.arguments if not argument.kwarg_only]
    if any(argument.name == "dtype" for argument in op._schema.arguments):
        called = op
    else:  # another overload takes the same arguments and a dtype
        called = next(
            each
            for each in (
                getattr(op._overloadpacket, kind) for kind in op._overloadpacket.overloads()
            )
            if [argument.name for argument in each._schema.arguments] == [*names, "dtype"]
        )
    place = names.index("dtype") if "dtype" in names else None
    fused = _HALF_TO_FLOAT.get(op._schema.name)

    def call(args: Any, kwargs: Any) -> Any:
        given = kwargs.get("dtype")
        if place is not None and place < len(args):
            given = args[place]
        if given is not None or not is_eligible(args[0]):
            return op(*args, **kwargs)
        # Defaults are left out of a call, and the other overload has none.
        left_out = op._schema.arguments[len(args) :]
        kwargs = {
            **{each.name: each.default_value for each in left_out if each.has_default_value()},
            **kwargs,
        }
        if fused is not None and args[0].dtype is torch.float16:
            return fused(args[0], args[1], True)
        if place is not None and place < len(args):
            return op(*args[:place], torch.float32, *args[place + 1 :], **kwargs)
        return called(*args, **{**kwargs, "dtype": torch.float32})

    return call


class _Casts:
    """Casts tensors, and keeps the casts of weights until the outermost region ends."""

    def __init__(self, get_gradients: bool) -> None:
        self._get_gradients = get_gradients
        self._kept: dict[int, tuple[Any, torch.Tensor]] = {}

    def around_clearing(self, original: Callable[[], None]) -> None:
        """Forget them when torch does."""
        self._kept.clear()
        original()

    def to(self, dtype: torch.dtype, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor in a dtype, as autocast's own cache would have it."""
        if tensor.dtype is dtype:
            return tensor
        if not (
            dtype is torch.get_autocast_dtype("cpu")
            and tensor.dtype is torch.float32
            and tensor.requires_grad
            and tensor.is_leaf
            and not tensor._is_view()
            and torch.is_autocast_cache_enabled()
        ):
            return tensor.to(dtype)
        kept = self._kept.get(id(tensor))
        if kept is None or kept[0]() is not tensor or kept[1].dtype is not dtype:
            inference = torch.is_inference_mode_enabled() and not self._get_gradients
            gradients = torch.is_grad_enabled() or self._get_gradients
            with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
                kept = self._kept[id(tensor)] = ref(tensor), tensor.to(dtype)
        return kept[1]
