"""What is asked of a tensor without looking at its values."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

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


@torch.no_grad()
def parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors that hold its values; none where it can't be looked into.

    A DTensor's is its local shard, those of a quantised state its codes and scales. A subclass may
    lack any operator: only its parts can be asked for everything.
    """
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        held = [getattr(tensor, name) for name in names]  # a mesh may be among them
        return [part for each in held if isinstance(each, torch.Tensor) for part in parts(each)]
    if type(tensor) in (torch.Tensor, torch.nn.Parameter):
        return [tensor.detach()]
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return []
    with torch._C.DisableTorchFunctionSubclass():
        return [tensor.detach().as_subclass(torch.Tensor)]


def local(tensor: torch.Tensor) -> torch.Tensor | None:
    """The one plain tensor that holds its values; None where several do, or it can't be seen."""
    found = parts(tensor)
    return found[0] if len(found) == 1 else None


@torch.no_grad()
def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all its values are, as far as they can be looked at."""
    return all(
        bool(torch.isfinite(part._values() if part.is_sparse else part).all())
        for part in parts(tensor)
    )


@torch.no_grad()
def is_zero(tensor: torch.Tensor) -> bool:
    """Whether all its values are, as far as they can be looked at."""
    found = parts(tensor)
    return bool(found) and not any(bool((part != 0).any()) for part in found)


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
