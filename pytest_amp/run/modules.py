"""The modules that are being called, seen without hooks, of which torch.compile would warn.

Not for compiled code, which is left to run as it was compiled: set the stance "force_eager" first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pytest_amp.errors import none_of_ours

__tracebackhide__ = none_of_ours


class ModuleStack:
    """Within it, the modules that are being called right now; `entered` is told of each."""

    def __init__(self, entered: Callable[[torch.nn.Module], None] = lambda _: None) -> None:
        self._entered = entered
        self._stack: list[torch.nn.Module] = []
        self._original: Any = None

    def __enter__(self) -> ModuleStack:
        original = self._original = torch.nn.Module.__call__

        def call(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            self._stack.append(module)
            try:
                self._entered(module)
                return original(module, *args, **kwargs)
            finally:
                self._stack.pop()

        torch.nn.Module.__call__ = call  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        torch.nn.Module.__call__ = self._original  # type: ignore[method-assign]

    def path(self) -> str | None:
        """``layers.3.mlp``, or the class name of an outermost module; None outside of modules."""
        if not self._stack:
            return None
        root, current = self._stack[0], self._stack[-1]
        names = {id(module): name for name, module in root.named_modules()}
        name = names.get(id(current), "").removeprefix("_orig_mod").removeprefix(".")
        return name or type(getattr(current, "_orig_mod", current)).__name__
