"""Compute what a GPU's tensor cores compute, on a CPU: in float32, from operands that are rounded.

The kernels stand below autograd and below whatever watches operators, so the dtypes, the tensors
that are saved for the backward pass and the overflows are those of the reduced dtype. A CPU's own
kernels for it are missing, or take a hundred times as long as float32's.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.memory import workspace

__tracebackhide__ = unless_our_bug

_REDUCED = (torch.float16, torch.bfloat16)
_SOFTMAXES = ("_softmax", "_log_softmax")
_PRODUCTS = (
    "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "addr", "convolution",
    "convolution_backward", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward", "mkldnn_rnn_layer",
    "mkldnn_rnn_layer_backward",
)  # fmt: skip

# These read and write float16 on CUDA, and no CPU's version of torch does.
_CUDAS_ALONE = (
    "avg_pool3d", "avg_pool3d_backward", "rrelu_with_noise", "rrelu_with_noise_backward", "round",
    "polygamma", "trace",
)  # fmt: skip


@contextmanager
def rounded_products() -> Iterator[None]:
    """Compute products of reduced operands in float32, and round what they make."""
    library = torch.library.Library("aten", "IMPL", "BackendSelect")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in (*_PRODUCTS, *_CUDAS_ALONE):
            packet = getattr(torch.ops.aten, name, None)
            if packet is not None:
                library.impl(name, _in_float32(packet.default), with_keyset=True)
        for name in _SOFTMAXES:
            library.impl(
                name, _half_to_float(getattr(torch.ops.aten, name).default), with_keyset=True
            )
            back = f"{name}_backward_data"
            library.impl(
                back, _float_to_half(getattr(torch.ops.aten, back).default), with_keyset=True
            )
    try:
        yield
    finally:
        library._destroy()


_BELOW = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.BackendSelect)


def _in_float32(op: Any) -> Callable[..., Any]:
    def kernel(keys: Any, *args: Any, **kwargs: Any) -> Any:
        keys = keys & _BELOW
        dtype = next(
            (
                each.dtype
                for each in (*args, *kwargs.values())
                if isinstance(each, torch.Tensor) and each.dtype in _REDUCED
            ),
            None,
        )
        if dtype is None:
            return op.redispatch(keys, *args, **kwargs)
        began = time.time_ns()
        args, kwargs = pytree.tree_map_only(torch.Tensor, _widened, (args, kwargs))
        made = op.redispatch(keys, *args, **kwargs)

        def rounded(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(dtype) if tensor.dtype is torch.float32 else tensor

        made = pytree.tree_map_only(torch.Tensor, rounded, made)
        del args, kwargs
        workspace(began)
        return made

    return kernel


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in _REDUCED else tensor


def _half_to_float(op: Any) -> Callable[..., Any]:
    """Make a softmax that can write float32 of what it read in float16."""

    def kernel(keys: Any, tensor: torch.Tensor, dim: int, half_to_float: bool) -> Any:
        read = tensor.float() if half_to_float else tensor
        return op.redispatch(keys & _BELOW, read, dim, False)

    return kernel


def _float_to_half(op: Any) -> Callable[..., Any]:
    """Make its backward pass, which writes float16 of what it read in float32."""

    def kernel(
        keys: Any, gradient: torch.Tensor, output: torch.Tensor, dim: int, dtype: torch.dtype
    ) -> Any:
        made = op.redispatch(keys & _BELOW, gradient, output, dim, gradient.dtype)
        return made.to(dtype)

    return kernel
