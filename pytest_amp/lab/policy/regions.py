"""Make what a step says of CUDA's autocast true of the CPU's, which stands for it.

A region for CUDA is entered as one for the CPU, and stays what it is: a decorator that a test's
imports make is used by other tests as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.events import subscribed

__tracebackhide__ = unless_our_bug

State = tuple[bool, torch.dtype]


@contextmanager
def cuda_means_cpu() -> Iterator[None]:
    """Take ``torch.autocast("cuda")``, ``GradScaler("cuda")`` and the like as the CPU's.

    What asks whether CUDA's autocast is on, and in which dtype, is told of the CPU's.
    """
    kinds = ("cpu", "cuda")
    before = {kind: state(kind) for kind in kinds}
    torch.set_autocast_dtype("cpu", before["cuda"][1])
    regions = _Regions()
    try:
        with subscribed(
            autocast_made=regions.around_init,
            autocast_enter=regions.around_enter,
            autocast_exit=regions.around_exit,
            custom_cast=_cast,
            scaler_device=_made,
        ):
            yield
    finally:
        for kind in kinds:
            set_state(kind, before[kind])


def state(kind: str) -> State:
    """Return whether autocast is on for a device type, and its dtype."""
    return torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)


def set_state(kind: str, wanted: State) -> None:
    """Put back what `state` returned."""
    torch.set_autocast_enabled(kind, wanted[0])
    torch.set_autocast_dtype(kind, wanted[1])


class _Regions:
    """What regions were asked for, and what CUDA's state was around those that were entered."""

    def __init__(self) -> None:
        self._asked: WeakKeyDictionary[Any, State] = WeakKeyDictionary()
        self._around: WeakKeyDictionary[Any, list[State]] = WeakKeyDictionary()

    def around_init(self, original: Any, region: Any, *args: Any, **kwargs: Any) -> None:
        """Note what is asked for; torch would switch a region for CUDA off, and warn."""
        given = inspect.signature(original).bind_partial(region, *args, **kwargs).arguments
        kind = given.get("device_type")
        # A thread that begins has its own default, which is not what was set for the CPU.
        if kind in ("cpu", "cuda") and given.get("dtype") is None:
            given["dtype"] = torch.get_autocast_dtype("cuda")
        if kind == "cuda":
            self._asked[region] = bool(given.get("enabled", True)), given["dtype"]
            given["enabled"] = False
        original(**{"self": given.pop("self"), **given})

    def around_enter(self, original: Any, region: Any) -> Any:
        """Enter it as one for the CPU, and say of CUDA's autocast what is then so of the CPU's."""
        self._around.setdefault(region, []).append(state("cuda"))
        with self._as_the_cpus(region):
            result = original(region)
        set_state("cuda", state("cpu"))
        return result

    def around_exit(self, original: Any, region: Any, *exception: Any) -> Any:
        """Leave it, and put CUDA's state back."""
        with self._as_the_cpus(region):
            result = original(region, *exception)
        if around := self._around.get(region):
            set_state("cuda", around.pop())
        return result

    @contextmanager
    def _as_the_cpus(self, region: Any) -> Iterator[None]:
        if region.device != "cuda":
            yield
            return
        own = region._enabled, region.fast_dtype
        # One that was made before, where torch has switched it off, stays off.
        region._enabled, region.fast_dtype = self._asked.get(region, own)
        region.device = "cpu"
        try:
            yield
        finally:
            region.device = "cuda"
            region._enabled, region.fast_dtype = own


def _made(original: Any, *args: Any, **kwargs: Any) -> None:
    """Make a scaler that is for CUDA, as is the default, one for the CPU."""
    given = inspect.signature(original).bind_partial(*args, **kwargs).arguments
    if given.get("device", "cuda") == "cuda":
        given["device"] = "cpu"
    original(**{"self": given.pop("self"), **given})


def _cast(original: Any, value: Any, device_type: str, dtype: torch.dtype) -> Any:
    return original(value, "cpu" if device_type == "cuda" else device_type, dtype)
