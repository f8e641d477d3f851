"""Find the lines that change gradients between a backward pass and the optimizer's step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.source import location

__tracebackhide__ = unless_our_bug

# Gradients are emptied by these, and divided by the scale by what begins like that.
_EMPTIES = ("zero_", "_foreach_zero_")
_SCALERS = "_amp_"
_KEEP_VALUES = ("requires_grad_", "detach_")
_ASSIGNED = torch.Tensor.grad.__set__  # type: ignore[union-attr]


class GradientEdits(TorchFunctionMode):
    """Notes where tensors are changed in place, where gradients are assigned, and hooks on them.

    Only what Python calls is seen. That is what a user's code and `clip_grad_norm_` do; the
    backward pass and fused optimizers are left out.
    """

    def __init__(self) -> None:
        super().__init__()
        # By memory, since `.data` is another tensor; each is kept, so that its memory is not used
        # again meanwhile.
        self._changed: dict[int, tuple[torch.Tensor, str]] = {}
        self._assigned: dict[int, str] = {}
        self._zeroed: dict[int, tuple[torch.Tensor, str]] = {}
        self._removed: dict[int, str] = {}
        self._hooked: dict[int, tuple[torch.Tensor, str]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if not args or name.startswith(_SCALERS) or name in _KEEP_VALUES:
            return result
        if name in _EMPTIES:
            for tensor in _tensors(args[0]):
                self._zeroed.setdefault(_memory(tensor), (tensor, location() or ""))
        elif func == _ASSIGNED and args[1] is None:
            self._removed.setdefault(id(args[0]), location() or "")
        elif name == "register_hook" and args[0].is_leaf:
            self._hooked[id(args[0])] = args[0], location() or ""
        elif func == _ASSIGNED:
            self._assigned.setdefault(id(args[0]), location() or "")
        elif name.endswith("_") and not name.endswith("__"):
            for tensor in _tensors(args[0]):
                self._changed.setdefault(_memory(tensor), (tensor, location() or ""))
        return result

    def line_of(self, parameters: Iterable[torch.Tensor]) -> str | None:
        """Return the line that first changed the gradient of one of the parameters, or set it.

        If there is none, it is the line that put a hook on one.
        """
        known = list(parameters)
        for each in known:
            changed = self._changed.get(_memory(each.grad)) if each.grad is not None else None
            if changed or id(each) in self._assigned:
                return (changed[1] if changed else self._assigned[id(each)]) or None
        return next((self._hooked[id(each)][1] for each in known if id(each) in self._hooked), None)

    def emptied(self, parameters: Iterable[torch.Tensor]) -> str | None:
        """Return the line that first set the gradient of one of the parameters to zero or None."""
        for each in parameters:
            zeroed = self._zeroed.get(_memory(each.grad)) if each.grad is not None else None
            if zeroed or id(each) in self._removed:
                return (zeroed[1] if zeroed else self._removed[id(each)]) or None
        return None

    def forget(self) -> None:
        """Leave out what was changed, assigned and emptied so far, as a backward pass begins."""
        self._changed.clear()
        self._assigned.clear()
        self._zeroed.clear()
        self._removed.clear()


def _tensors(target: Any) -> list[torch.Tensor]:
    several = target if isinstance(target, (list, tuple)) else (target,)
    return [each for each in several if type(each) in (torch.Tensor, torch.nn.Parameter)]


def _memory(tensor: torch.Tensor) -> int:
    has_memory = type(tensor) is torch.Tensor and tensor.layout is torch.strided
    return tensor.untyped_storage().data_ptr() if has_memory else id(tensor)
