"""Measure what this device can reach: the rates of products, and of memory, by size and dtype.

Each kind of work is timed alone and hot, at sizes that grow until a call takes long. The best of
several calls counts, since whatever else runs can only slow a call down. This takes from some
tenths of a second to two seconds, once in a process for each kind and dtype.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

from pytest_amp.errors import unless_our_bug
from pytest_amp.judge.roofline import BACKWARD, PRODUCTS, TF32, Ceilings, Curve
from pytest_amp.lab.machine.device import Device
from pytest_amp.lab.machine.torch_globals import set_tf32

__tracebackhide__ = unless_our_bug

# A size is timed for so long, or with so many calls if that takes longer.
_SPAN_S = 0.001
_LEAST_CALLS = 3
_TOGETHER = 10
# Sizes end where a call takes so long, or where it takes too long although the rate still grows.
_LONG_S, _TOO_LONG_S, _GROWS = 0.0005, 0.010, 1.2


class _Call(NamedTuple):
    """A call that is timed.

    Attributes:
        size: its FLOPs, or the bytes that it moves.
        run: makes the call.
        leaves: the tensors that a backward pass computes the gradients of.
    """

    size: float
    run: Callable[[], torch.Tensor]
    leaves: tuple[torch.Tensor, ...] = ()


class Place(NamedTuple):
    """Where and how figures are measured: those of one place hold for the whole process.

    Attributes:
        device: the device.
        threads: the threads that a CPU's operators use.
        switches: the switches that decide which kernels run.
    """

    device: str
    threads: int
    switches: tuple[bool, ...] = ()


Make = Callable[..., torch.Tensor]
# Returns the calls of one size, by the size's number.
Calls = Callable[[int, Make], Iterator[_Call]]


def measured(
    device: Device, kinds: Iterable[str], dtypes: Iterable[str]
) -> tuple[Ceilings, Ceilings]:
    """Return what the device reaches at best, and what it reaches usually.

    Args:
        device: the device.
        kinds: the kinds of products, as `kind_of` names them.
        dtypes: the dtypes in which they are computed; "tf32" is one of them.

    Raises:
        RuntimeError: not even memory could be measured, since there is none left.
    """
    switches = torch.are_deterministic_algorithms_enabled(), bool(torch.backends.mkldnn.enabled)
    place = Place(str(device.torch), torch.get_num_threads(), switches)
    dtypes = tuple(dtypes)
    moved = sorted({"float32", *dtypes} - {TF32})
    products = {
        (kind, dtype): found
        for dtype in dtypes
        for kind in sorted({PRODUCTS, *kinds})
        if (found := _in_force(place, kind, dtype)) is not None
    }
    casts = {dtype: found for dtype in moved if (found := _in_force(place, "casts", dtype))}
    if set(casts) != set(moved):
        raise RuntimeError("not even a cast could be timed")
    large = {dtype: Curve.flat(each.usual.rates[-1]) for dtype, each in casts.items()}
    overlaps = device.is_accelerator
    return (
        Ceilings(
            {each: found.best for each, found in products.items()},
            {dtype: found.best for dtype, found in casts.items()},
            overlaps=overlaps,
        ),
        Ceilings({each: found.usual for each, found in products.items()}, large, overlaps=overlaps),
    )


def _in_force(place: Place, kind: str, dtype: str) -> Reached | None:
    """Return what is reached with float32 products as the dtype has them."""
    set_tf32(on=dtype == TF32)
    return reached(place, kind, dtype)


def _products(number: int, make: Make) -> Iterator[_Call]:
    n = 32 * 2**number
    left, right = make(n, n), make(n, n)
    # As a linear layer multiplies: forward, for its input's gradient, and for its weight's.
    for pair in ((left, right.t()), (left, right), (left.t(), right)):
        yield _Call(2.0 * n**3, partial(torch.matmul, *pair))


def _convolutions(number: int, make: Make) -> Iterator[_Call]:
    """Yield convolutions with both memory formats."""
    channels, batch = 16 * 2**number, 2 * 2**number
    for layout in (torch.contiguous_format, torch.channels_last):
        image = make(batch, channels, 16, 16).to(memory_format=layout)
        weight = make(channels, channels, 3, 3).to(memory_format=layout)
        flops = 2.0 * batch * 16 * 16 * channels * channels * 9
        yield _Call(
            flops,
            partial(F.conv2d, image, weight, padding=1),
            (image, weight),
        )


def _attention(number: int, make: Make) -> Iterator[_Call]:
    length = 32 * 2**number
    query, key, value = (make(4, 4, length, 32) for _ in range(3))
    flops = 4.0 * 4 * 4 * length**2 * 32
    yield _Call(
        flops, lambda: F.scaled_dot_product_attention(query, key, value), (query, key, value)
    )


def _recurrence(number: int, make: Make) -> Iterator[_Call]:
    width, length, batch = 32 * 2**number, 32, 8
    weights = make(4 * width, width), make(4 * width, width), make(4 * width), make(4 * width)
    sequence, state = make(length, batch, width), make(1, batch, width)

    def run() -> torch.Tensor:
        switches = (True, 1, 0.0, True, False, False)  # one layer with biases, in training
        out: torch.Tensor = torch.lstm(sequence, (state, state), weights, *switches)[0]
        return out

    yield _Call(2.0 * length * batch * 8 * width**2, run, (sequence, *weights))


def _casts(number: int, make: Make) -> Iterator[_Call]:
    values = make(2**12 * 4**number)
    other = torch.bfloat16 if values.dtype == torch.float32 else torch.float32
    moved = values.nbytes + values.numel() * other.itemsize
    yield _Call(float(moved), lambda: values.to(other))


_CALLS: dict[str, Calls] = {
    PRODUCTS: _products,
    "convolutions": _convolutions,
    "attention": _attention,
    "recurrence": _recurrence,
    "casts": _casts,
}
_MOST_SIZES = 8
# FLOPs of a backward pass by those of the forward pass; attention computes its scores again.
_BACKWARD = {"attention": 2.5}


class Reached(NamedTuple):
    """What calls of a kind of work reach, by size.

    Attributes:
        best: the fastest layout's rates, at best: a call of the same FLOPs whose shape suits the
            device better can be as fast as one of the next larger size.
        usual: the rates of all layouts together.
    """

    best: Curve
    usual: Curve


@cache
def reached(place: Place, kind: str, dtype: str) -> Reached | None:
    """Return the rates of a kind of work; None if it can't be run here.

    Args:
        place: where it runs.
        kind: the kind of work.
        dtype: the dtype that it runs in.
    """
    forward, device = kind.removesuffix(BACKWARD), torch.device(place.device)
    backward = kind != forward
    generator = torch.Generator(device).manual_seed(0)

    def make(*shape: int) -> torch.Tensor:
        values = torch.randn(*shape, device=device, generator=generator)
        values = values.to(torch.float32 if dtype == TF32 else getattr(torch, dtype))
        return values.requires_grad_(backward)

    sizes, fastest, usual = [], [], []
    for number in range(_MOST_SIZES):
        try:
            with _neutral(device):
                calls = list(_CALLS[forward](number, make))
                seconds = [_seconds(call, device, backward) for call in calls]
        except RuntimeError:  # there is no kernel for it, or no room for this size
            break
        size = calls[0].size * (_BACKWARD.get(forward, 2.0) if backward else 1.0)
        sizes.append(size)
        fastest.append(size / min(seconds))
        usual.append(size * len(seconds) / sum(seconds))
        grows = len(usual) < 2 or usual[-1] > _GROWS * usual[-2]
        if max(seconds) > (_TOO_LONG_S if grows else _LONG_S):
            break
    if not sizes:
        return None
    best = (max(fastest[: number + 2]) for number in range(len(sizes)))
    return Reached(Curve(tuple(sizes), tuple(best)), Curve(tuple(sizes), tuple(usual)))


@contextmanager
def _neutral(device: torch.device) -> Iterator[None]:
    """Put out of force what a test may have put in force around its measurement.

    A thread of its own would do, but its OpenMP threads would have to share the cores with those of
    the calling thread, which spin.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield


def _seconds(call: _Call, device: torch.device, backward: bool) -> float:
    """Return the fewest seconds that a call took, or its backward pass."""
    if not backward:
        return _fewest_seconds(call.run, Device(device))
    out = call.run()
    ones = torch.ones_like(out)

    def run() -> object:
        return torch.autograd.grad(out, call.leaves, ones, retain_graph=True)

    return _fewest_seconds(run, Device(device))


def _fewest_seconds(run: Callable[[], object], device: Device) -> float:
    """Return the seconds of a call; an accelerator is given several, so that it does not wait."""
    run()
    device.synchronize()
    together = _TOGETHER if device.is_accelerator else 1
    took: list[float] = []
    until = time.perf_counter() + _SPAN_S
    while len(took) < _LEAST_CALLS or time.perf_counter() < until:
        began = time.perf_counter()
        for _ in range(together):
            run()
        device.synchronize()
        took.append((time.perf_counter() - began) / together)
    return min(took)
