"""Digests of tensors by value, taken on the device and without a copy of the tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree

from pytest_amp.errors import none_of_ours

__tracebackhide__ = none_of_ours

_PIECE = 2**18
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def digest(values: Iterable[Any]) -> tuple[str, ...]:
    """One text per value: dtype, shape and the wrapping sum of the elements' bits.

    Equal tensors have equal digests; two random draws differ in theirs. The order of elements
    within one tensor is not told apart.
    """
    return tuple(_one(value) for value in values)


def _one(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return repr(value) if isinstance(value, (bool, int, float, str)) else type(value).__name__
    kind = f"{value.dtype}{list(value.shape)}"
    bits = _BITS.get(value.element_size())
    plain = value.layout is torch.strided and not value.is_nested and not value.is_quantized
    if not plain or value.is_meta or bits is None:
        return kind
    with torch.no_grad():
        flat = value.detach()
        if flat.is_complex():
            flat = torch.view_as_real(flat)
            bits = _BITS[flat.element_size()]
        total = torch.zeros((), dtype=torch.int64, device=flat.device)
        for piece in flat.reshape(-1).view(bits).split(_PIECE):  # whose sum takes a copy on a CPU
            total += piece.sum(dtype=torch.int64)
        return f"{kind}:{int(total)}"


def placed_digest(tensor: torch.Tensor) -> str:
    """Shape and values, each weighed by its place: the same in all dtypes that hold them exactly.

    Needs room for a few copies of the tensor.
    """
    shape = str(list(tensor.shape))
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_meta:
        return shape
    with torch.no_grad():
        flat = tensor.detach()
        flat = (torch.view_as_real(flat) if flat.is_complex() else flat).float().flatten()
        bits = flat.view(torch.int32)
        place = torch.arange(1, bits.numel() + 1, device=bits.device)
        return f"{shape}:{int((bits * place).sum())}"


@contextmanager
def first_inputs(seen: list[tuple[str, ...]]) -> Iterator[None]:
    """Put the digests of the first called module's inputs into `seen`.

    Inputs that were computed from parameters are no data, and differ by rounding: of a step that
    calls a module only behind its own arithmetic (as ``CrossEntropyLoss``) nothing is seen.
    The class's ``__call__`` is replaced until the first call and no longer: hooks would stay, and
    a module hook makes torch.compile warn and guard.
    """
    original = torch.nn.Module.__call__

    def restore() -> None:
        torch.nn.Module.__call__ = original  # type: ignore[method-assign]

    def look_once(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            restore()
            inputs = pytree.tree_leaves((args, kwargs))
            if all(getattr(each, "grad_fn", None) is None for each in inputs):
                seen.append(digest(inputs))
        return original(self, *args, **kwargs)

    torch.nn.Module.__call__ = look_once  # type: ignore[method-assign]
    try:
        yield
    finally:
        restore()
