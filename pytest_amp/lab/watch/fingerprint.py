"""Digest tensors by value, on their device and piece by piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree
from torch.utils._mode_utils import no_dispatch

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.assignments import names_of
from pytest_amp.lab.watch.events import subscribed
from pytest_amp.lab.watch.source import location
from pytest_amp.lab.watch.tensors import plain_parts, real
from pytest_amp.observations import Named

__tracebackhide__ = unless_our_bug

# In elements. A CPU's caches hold this many; an accelerator takes as long to launch as for 2**20.
_LEAST_PIECE = {"cpu": 2**14}
_LEAST_PIECE_OF_A_DEVICE = 2**20
_MOST_PIECES = 2**8
_PROJECTIONS = 4
_ODD = 0x9E3779B1 - 2**32
_SIGN = -(2**31)  # the bit of a float32 that is its sign
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def digest(values: Iterable[Any]) -> tuple[str, ...]:
    """Return a text for each value: of a tensor its dtype, its shape and a sum of bits * places.

    The sum wraps. Equal tensors have equal digests. Two random draws have different ones, and so
    have two orders of the same elements.
    """
    return tuple(_one(value) for value in values)


def _one(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return repr(value) if isinstance(value, (bool, int, float, str)) else type(value).__name__
    sums = [_bits(part) for part in plain_parts(value) or ()]
    return ":".join([_kind(value), *sums])


def _kind(tensor: torch.Tensor) -> str:
    with torch._C.DisableTorchFunctionSubclass():
        nested = tensor.is_nested and tensor.layout is torch.strided  # such a tensor has no shape
        return f"{tensor.dtype}{[] if nested else list(tensor.shape)}"


def _bits(part: torch.Tensor) -> str:
    flat = _real(part)
    bits = _BITS.get(flat.element_size())
    return "" if bits is None else str(_sum(flat, lambda piece: piece.view(bits)))


def digest_in_any_dtype(tensor: torch.Tensor) -> str:
    """Digest a tensor's shape and values, alike in all dtypes that hold the values exactly."""
    sums = [
        str(_sum(_real(part), lambda piece: piece.float().view(torch.int32)))
        for part in plain_parts(tensor) or ()
    ]
    return ":".join([_kind(tensor).partition("[")[2], *sums])


def pieces(flat: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Split a one-dimensional tensor into views that are short enough to copy several times.

    Yields:
        The index of each piece's first element, and the piece.
    """
    least = _LEAST_PIECE.get(flat.device.type, _LEAST_PIECE_OF_A_DEVICE)
    size = max(least, flat.numel() // _MOST_PIECES)
    for start in range(0, flat.numel(), size):
        yield start, flat[start : start + size]


def _real(part: torch.Tensor) -> torch.Tensor:
    """View or copy a plain tensor as real numbers in one dimension."""
    return (real(part) if part.is_complex() else part).resolve_neg().reshape(-1)


@torch.no_grad()
def _sum(flat: torch.Tensor, bits_of: Callable[[torch.Tensor], torch.Tensor]) -> int:
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for start, piece in pieces(flat):
        places = torch.arange(start + 1, start + 1 + piece.numel(), device=flat.device)
        total += places.mul_(bits_of(piece)).sum()
    return int(total)


def _wrapped(number: int) -> int:
    """Return a number as it is in 32 bits."""
    return (number + 2**31) % 2**32 - 2**31


class Inputs(NamedTuple):
    """A module's inputs.

    Attributes:
        digests: a digest of each; None if no module was called.
        samples: what `sample` returns for each.
        location: the user's line that called the module.
        names: what the user's functions call the first of them.
    """

    digests: tuple[str, ...] | None
    samples: tuple[tuple[float, ...], ...]
    location: str | None = None
    names: tuple[Named, ...] = ()


@torch.no_grad()
def sample(value: Any) -> tuple[float, ...]:
    """Return a floating point tensor's norm, and its sums under a few fixed patterns of signs.

    Every element contributes, so two samples are about as far apart, in proportion, as their
    tensors are. The result is empty for a value of another kind, or a tensor that also holds other
    numbers.
    """
    flats = [
        _real(part)
        for part in (plain_parts(value) if isinstance(value, torch.Tensor) else ()) or ()
    ]
    if not any(flat.numel() for flat in flats) or not all(map(torch.is_floating_point, flats)):
        return ()
    with no_dispatch():  # this is not the step's work, and is done as written
        total = torch.zeros(1 + _PROJECTIONS, device=flats[0].device)
        for flat in flats:
            for start, piece in pieces(flat):
                places = torch.arange(piece.numel(), dtype=torch.int32, device=flat.device)
                places.add_(_wrapped(start + 1)).mul_(_ODD)
                floats = piece.float()
                bits = floats.view(torch.int32)
                total[0] += floats.square().sum()
                for number in range(_PROJECTIONS):
                    signs = places.bitwise_left_shift(number).bitwise_and_(_SIGN)
                    total[1 + number] += signs.bitwise_xor_(bits).view(torch.float32).sum()
    square, *sums = total.tolist()
    return (math.sqrt(square), *sums)


@contextmanager
def first_inputs(seen: list[Inputs]) -> Iterator[None]:
    """Append the inputs of the first module that is called to `seen`.

    Inputs that were computed from parameters are not data, and differ by rounding. A step whose
    first module works on computed values, as ``CrossEntropyLoss`` does, therefore adds nothing. The
    class's ``__call__`` is replaced until the first call and no longer. Hooks would stay, and a
    module hook makes torch.compile warn and guard.
    """

    def look_once(original: Any, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            watch.close()
            inputs = pytree.tree_leaves((args, kwargs))
            if all(getattr(each, "grad_fn", None) is None for each in inputs):
                first = next(filter(torch.is_tensor, inputs), None)
                names = () if first is None else names_of(first)
                samples = tuple(map(sample, inputs))
                seen.append(Inputs(digest(inputs), samples, location(), names))
        return original(module, *args, **kwargs)

    with ExitStack() as watch:
        watch.enter_context(subscribed(module_call=look_once))
        yield
