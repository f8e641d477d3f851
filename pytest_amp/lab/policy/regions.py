"""Make what a step says of CUDA's autocast true of the CPU's, which stands for it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.events import subscribed

__tracebackhide__ = unless_our_bug


@contextmanager
def cuda_means_cpu() -> Iterator[None]:
    """Take ``torch.autocast("cuda")``, ``GradScaler("cuda")`` and the like as the CPU's.

    What asks whether CUDA's autocast is on, and in which dtype, is told of the CPU's.
    """
    kinds = ("cpu", "cuda")
    before = {
        kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds
    }
    torch.set_autocast_dtype("cpu", before["cuda"][1])
    _tell_cuda()
    try:
        with subscribed(
            autocast_made=_made,
            autocast_enter=_crossed,
            autocast_exit=_crossed,
            custom_cast=_cast,
            scaler_device=_made,
        ):
            yield
    finally:
        for kind, (enabled, dtype) in before.items():
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)


def _made(original: Any, *args: Any, **kwargs: Any) -> None:
    """Make a region or a scaler that is for CUDA one for the CPU."""
    given = inspect.signature(original).bind_partial(*args, **kwargs)
    for name in ("device_type", "device"):
        if str(given.arguments.get(name, "")).partition(":")[0] == "cuda":
            given.arguments[name] = "cpu"
    if "device" in inspect.signature(original).parameters:  # a scaler's default is CUDA
        given.arguments.setdefault("device", "cpu")
    original(*given.args, **given.kwargs)


def _crossed(original: Any, *args: Any) -> Any:
    """Enter or leave a region."""
    result = original(*args)
    _tell_cuda()
    return result


def _tell_cuda() -> None:
    """Say of CUDA's autocast what is so of the CPU's."""
    torch.set_autocast_enabled("cuda", torch.is_autocast_enabled("cpu"))
    torch.set_autocast_dtype("cuda", torch.get_autocast_dtype("cpu"))


def _cast(original: Any, value: Any, device_type: str, dtype: torch.dtype) -> Any:
    return original(value, "cpu" if device_type == "cuda" else device_type, dtype)
