"""Compute float32 steps with the rounding of a reduced dtype, and with nothing else of autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.dispatch import DispatchMode
from pytest_amp.lab.watch.flops import is_product

__tracebackhide__ = unless_our_bug


class RoundedProducts(DispatchMode):
    """Round operands and results of matrix products, convolutions and attention to a dtype.

    The products of the backward pass are rounded too. Everything stays in float32, and the range
    is float32's.

    Args:
        dtype: the dtype whose precision the values keep.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not is_product(func):
            return func(*args, **(kwargs or {}))
        args, kwargs = pytree.tree_map_only(torch.Tensor, self._rounded, (args, kwargs or {}))
        return pytree.tree_map_only(torch.Tensor, self._rounded, func(*args, **kwargs))

    def _rounded(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype is not torch.float32:
            return tensor
        nearest = tensor.to(self._dtype).to(tensor.dtype)
        in_range = nearest.isfinite() & (tensor.abs() >= torch.finfo(self._dtype).tiny)
        return torch.where(in_range, nearest, tensor)
