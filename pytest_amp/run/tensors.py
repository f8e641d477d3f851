"""What is asked of a tensor without looking at its values."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils import _pytree as pytree

from pytest_amp.records import REDUCED


def dtype_name(dtype: torch.dtype) -> str:
    """``float16``"""
    return str(dtype).removeprefix("torch.")


def floats(tree: Any) -> list[torch.Tensor]:
    return [
        leaf
        for leaf in pytree.tree_leaves(tree)
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
    ]


def storage(tensor: torch.Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse and nested tensors have none of their own
        return id(tensor)


def size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def matrix_dims(tensor: torch.Tensor) -> tuple[int, ...]:
    """The dimensions that a matrix kernel tiles; a convolution's are its channels."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return ()
    return tuple(tensor.shape[:2] if tensor.ndim > 3 else tensor.shape[-2:])


def stretch(tensor: torch.Tensor) -> int:
    """How many elements share one place in memory, as in an expanded tensor."""
    if tensor.layout is not torch.strided or not tensor.numel():
        return 1
    repeated = [n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride == 0]
    return math.prod(repeated)


def spread(tensor: torch.Tensor) -> torch.Tensor:
    """All that the tensor's memory holds, however it is viewed."""
    base = tensor._base if tensor._base is not None else tensor
    return base.detach().reshape(-1)


def is_reduced(tensor: torch.Tensor) -> bool:
    return dtype_name(tensor.dtype) in REDUCED
