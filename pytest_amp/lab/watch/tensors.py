"""Find the plain tensors inside tensors of any kind, and their dtype, size and memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from pytest_amp.observations import REDUCED

Tensors = Sequence[torch.Tensor]

TO_COPY: Any = torch.ops.aten._to_copy.default  # what casts; to look it up takes a while
PLAIN = (torch.Tensor, torch.nn.Parameter)
_REDUCED = tuple(getattr(torch, name) for name in REDUCED)


def plain_parts(tensor: torch.Tensor) -> list[torch.Tensor] | None:
    """Return the strided tensors of torch's own that hold the tensor's values, in its own memory.

    For a DTensor that is its local shard, for a sparse tensor its indices and values, and for any
    other wrapper what it flattens to. The result is None if that can't be told, or if there are no
    values.
    """
    if is_traceable_wrapper_subclass(tensor):
        return _flattened(tensor)
    try:
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            return _viewed(tensor)
    except (RuntimeError, NotImplementedError):  # its storage is not real
        return None


def _flattened(wrapper: Any) -> list[torch.Tensor] | None:
    try:
        held = [getattr(wrapper, name) for name in wrapper.__tensor_flatten__()[0]]
    except Exception:  # noqa: BLE001 - whoever wrote it, a tensor that can't be flattened is opaque
        return None
    parts = [plain_parts(each) for each in held if isinstance(each, torch.Tensor)]
    known = [part for part in parts if part is not None]
    return [each for part in known for each in part] if parts and len(known) == len(parts) else None


def _viewed(tensor: torch.Tensor) -> list[torch.Tensor] | None:
    within_functorch = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    if tensor.is_meta or tensor.is_quantized or within_functorch:
        return None
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        held = tensor.untyped_storage()
        if held.device != tensor.device or not held.data_ptr():
            return None
        with no_dispatch():
            tensor = tensor.as_subclass(torch.Tensor)
    elif type(tensor) not in PLAIN:
        tensor = tensor.as_subclass(torch.Tensor)
    tensor = tensor.detach()
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    return [tensor] if tensor.layout is torch.strided and not tensor.is_nested else None


def floating(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the plain tensors of floating point numbers inside; complex ones as pairs."""
    parts = [real(part) if part.is_complex() else part for part in plain_parts(tensor) or ()]
    return [part for part in parts if part.is_floating_point()]


def real(part: torch.Tensor) -> torch.Tensor:
    """View a plain tensor of complex numbers as pairs; a conjugated one is copied."""
    return torch.view_as_real(part.resolve_conj())


def values(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return the plain tensor of floating point numbers inside; None unless there is just one."""
    parts = floating(tensor)
    return parts[0] if len(parts) == 1 else None


def is_finite(part: torch.Tensor) -> bool:
    """Return whether all elements of a plain floating point tensor are finite."""
    wide = part if part.element_size() > 1 else part.float()  # one-byte floats have no kernel
    return bool(torch.isfinite(wide).all())


@cache
def dtype_name(dtype: torch.dtype) -> str:
    """Return the dtype's short name, such as ``float16``."""
    return str(dtype).removeprefix("torch.")


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """Return the tensors in a nested structure, such as an operator's arguments."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    found: list[torch.Tensor] = []
    _collect(tree, found)
    return found


_PLAIN_LEAVES = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device})


def _collect(tree: Any, found: list[torch.Tensor]) -> None:
    if isinstance(tree, torch.Tensor):
        found.append(tree)
    elif isinstance(tree, (tuple, list)):
        for each in tree:
            if isinstance(each, torch.Tensor):
                found.append(each)
            elif type(each) not in _PLAIN_LEAVES:
                _collect(each, found)
    elif isinstance(tree, dict):
        for each in tree.values():
            _collect(each, found)
    elif type(tree) in pytree.SUPPORTED_NODES:
        for each in pytree.tree_leaves(tree):
            _collect(each, found)


def floats(tree: Any) -> list[torch.Tensor]:
    """Return the floating point tensors in a nested structure."""
    return [each for each in tensors_in(tree) if each.is_floating_point()]


def storage(tensor: torch.Tensor) -> int:
    """Return a number that identifies the tensor's memory for as long as it lives."""
    if type(tensor) in PLAIN:
        try:
            return int(tensor.untyped_storage()._cdata)
        except (NotImplementedError, RuntimeError):  # sparse and nested tensors have none
            return id(tensor)
    held = memory(tensor)
    return id(tensor) if held is None else int(held._cdata)


def memory(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    """Return the storage that holds the tensor's values; None if that can't be told."""
    try:
        if type(tensor) in PLAIN:
            return tensor.untyped_storage()
        parts = floating(tensor) or plain_parts(tensor)
        return parts[0].untyped_storage() if parts else None
    except (NotImplementedError, RuntimeError):  # sparse and nested tensors have no storage
        return None


def size(tensor: torch.Tensor) -> int:
    """Return the bytes of the tensor's values."""
    if type(tensor) in PLAIN:
        return tensor.numel() * tensor.element_size()
    return sum(part.numel() * part.element_size() for part in plain_parts(tensor) or [tensor])


def matrix_dims(
    op: str, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]
) -> set[int]:
    """Return the dimensions that the alignment of a matrix kernel depends on.

    For a product these are the dimensions along which operands and result lie in memory, for a
    convolution its channels, and for attention the size of a head. The number of rows, examples or
    heads is never among them.
    """
    if "conv" in op:
        weight = inputs[2 if "backward" in op else 1]
        return set(weight.shape[:2])
    matrices = [each for each in (*inputs, *outputs) if _has_rows(each)]
    if "attention" in op:
        return {each.shape[-1] for each in matrices if each.ndim > 3}
    return {each.shape[-1] if each.stride(-1) == 1 else each.shape[-2] for each in matrices}


def _has_rows(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_nested and tensor.ndim > 1


def stretch(tensor: torch.Tensor) -> int:
    """Return how many elements share one place in memory, as in an expanded tensor."""
    if tensor.layout is not torch.strided or tensor.is_nested or not tensor.numel():
        return 1
    repeated = [n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride == 0]
    return math.prod(repeated)


def spread(tensor: torch.Tensor) -> torch.Tensor:
    """View everything that a plain tensor's memory holds, however the tensor itself views it."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.detach().as_strided((size,), (1,), 0)


def is_reduced(tensor: torch.Tensor) -> bool:
    """Return whether the tensor is in float16 or bfloat16."""
    return tensor.dtype in _REDUCED
