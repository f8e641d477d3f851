"""Compute what a GPU's tensor cores compute, on a CPU: in float32, from operands that are rounded.

The kernels stand below autograd and below whatever watches operators, so the dtypes, the tensors
that are saved for the backward pass and the overflows are those of the reduced dtype. A CPU's own
kernels for it are missing, or take a hundred times as long as float32's.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.memory import workspace

__tracebackhide__ = unless_our_bug

_REDUCED = (torch.float16, torch.bfloat16)


class _Reads(NamedTuple):
    """How an operator reads and writes reduced dtypes.

    Attributes:
        wide: the arguments that are in float32 on every device.
        rounded: how many of its results are in the reduced dtype, the first ones; None for all.
        written: the argument that it also writes.
    """

    wide: tuple[str, ...] = ()
    rounded: int | None = None
    written: str | None = None


_OPERATORS: Mapping[str, _Reads] = {
    **dict.fromkeys(
        (
            "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "addr",
            "convolution", "convolution_backward", "mkldnn_rnn_layer", "mkldnn_rnn_layer_backward",
            # These read and write float16 on CUDA, and no CPU's version of torch does.
            "avg_pool3d", "avg_pool3d_backward", "rrelu_with_noise_backward", "round", "polygamma",
            "trace",
        ),
        _Reads(),
    ),
    "rrelu_with_noise": _Reads(written="noise"),
    "_scaled_dot_product_flash_attention_for_cpu": _Reads(wide=("attn_mask",), rounded=1),
    "_scaled_dot_product_flash_attention_for_cpu_backward": _Reads(
        wide=("logsumexp", "attn_mask")
    ),
}  # fmt: skip
_SOFTMAXES = ("_softmax", "_log_softmax")


@contextmanager
def rounded_products() -> Iterator[None]:
    """Compute products of reduced operands in float32, and round what they make."""
    library = torch.library.Library("aten", "IMPL", "BackendSelect")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, kernel in _kernels():
                library.impl(name, kernel, with_keyset=True)
        yield
    finally:
        library._destroy()


def _kernels() -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, reads in _OPERATORS.items():
        packet = getattr(torch.ops.aten, name, None)
        if packet is not None:
            yield name, _in_float32(packet.default, reads)
    for name in _SOFTMAXES:
        yield name, _half_to_float(getattr(torch.ops.aten, name).default)
        back = f"{name}_backward_data"
        yield back, _float_to_half(getattr(torch.ops.aten, back).default)


_BELOW = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.BackendSelect)


def _in_float32(op: Any, reads: _Reads) -> Callable[..., Any]:
    names = [argument.name for argument in op._schema.arguments]

    def kernel(keys: Any, *args: Any, **kwargs: Any) -> Any:
        keys = keys & _BELOW
        given = dict(zip(names, args, strict=False)) | kwargs
        operands = [value for name, value in given.items() if name not in reads.wide]
        dtypes = {each.dtype for each in operands if _is_floating(each)}
        # Of several dtypes, the CPU's own kernel says what CUDA's says: that they do not mix.
        if len(dtypes) != 1 or not dtypes <= set(_REDUCED):
            return op.redispatch(keys, *args, **kwargs)
        (dtype,) = dtypes
        began = time.time_ns()
        widened = {name: _widened(value) for name, value in given.items()}
        made = op.redispatch(keys, **widened)
        if reads.written is not None:
            given[reads.written].copy_(widened[reads.written])
        del widened
        results = made if isinstance(made, tuple) else (made,)
        until = len(results) if reads.rounded is None else reads.rounded
        rounded = tuple(
            each.to(dtype) if place < until and _is_floating(each) else each
            for place, each in enumerate(results)
        )
        del results
        made = rounded if isinstance(made, tuple) else rounded[0]
        workspace(began)
        return made

    return kernel


def _is_floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _widened(value: Any) -> Any:
    def widen(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float() if tensor.dtype in _REDUCED else tensor

    return pytree.tree_map_only(torch.Tensor, widen, value)


def _half_to_float(op: Any) -> Callable[..., Any]:
    """Make a softmax that can write float32 of what it read in float16."""

    def kernel(keys: Any, tensor: torch.Tensor, dim: int, half_to_float: bool) -> Any:
        began = time.time_ns()
        read = tensor.float() if half_to_float else tensor
        made = op.redispatch(keys & _BELOW, read, dim, False)
        if half_to_float:
            del read
            workspace(began)
        return made

    return kernel


def _float_to_half(op: Any) -> Callable[..., Any]:
    """Make its backward pass, which writes float16 of what it read in float32."""

    def kernel(
        keys: Any, gradient: torch.Tensor, output: torch.Tensor, dim: int, dtype: torch.dtype
    ) -> Any:
        if dtype is gradient.dtype:
            return op.redispatch(keys & _BELOW, gradient, output, dim, dtype)
        began = time.time_ns()
        made = op.redispatch(keys & _BELOW, gradient, output, dim, gradient.dtype).to(dtype)
        workspace(began)
        return made

    return kernel
