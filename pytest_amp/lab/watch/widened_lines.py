"""Run chosen source lines in float32: what is called from them gets wide inputs and no autocast."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.source import location
from pytest_amp.lab.watch.tensors import is_reduced

__tracebackhide__ = unless_our_bug

_REDUCED = (torch.float16, torch.bfloat16)
_CASTS = {"half": torch.Tensor.float, "bfloat16": torch.Tensor.float}


class WidenedLines(TorchFunctionMode):
    """Runs torch's functions in float32 where the user's line that calls them is a chosen one.

    What such a function returns stays wide, so that what follows gets float32 too, as it would if
    the user wrapped the line. A tensor that a function changes in place keeps its dtype.

    Args:
        device_type: the device type whose autocast is left.
        lines: the lines, as `source.location` writes them.
    """

    def __init__(self, device_type: str, lines: Collection[str]) -> None:
        super().__init__()
        self._device_type = device_type
        self._lines = lines

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if _is_attribute(name) or location() not in self._lines:
            return func(*args, **kwargs)
        changed = args[:1] if _is_in_place(name) else ()
        given, named = pytree.tree_map(widened, (args[len(changed) :], kwargs))
        if "out" in kwargs:
            named["out"] = kwargs["out"]
        with torch.autocast(self._device_type, enabled=False):
            return _CASTS.get(name, func)(*changed, *given, **named)


def _is_attribute(name: str) -> bool:
    """Return whether a function only reads or sets an attribute, or begins a backward pass."""
    return name in ("__get__", "__set__", "backward", "requires_grad_", "size", "dim")


def _is_in_place(name: str) -> bool:
    """Return whether the first argument is changed: ``add_``, ``__iadd__``, ``__setitem__``."""
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name not in _NOT_IN_PLACE)
    return name.endswith("_")


_NOT_IN_PLACE = ("__index__", "__int__", "__invert__", "__iter__")


def widened(leaf: Any) -> Any:
    """Return a reduced tensor or dtype in float32, and anything else as it is."""
    if isinstance(leaf, torch.Tensor):
        return leaf.float() if is_reduced(leaf) else leaf
    return torch.float32 if isinstance(leaf, torch.dtype) and leaf in _REDUCED else leaf
