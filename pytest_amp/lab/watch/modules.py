"""Track which modules are being called, without hooks, since torch.compile would warn about those.

Compiled code is left to run as it was compiled, so set the stance "force_eager" first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.events import subscribed

__tracebackhide__ = unless_our_bug


class Call(NamedTuple):
    """A module that is being called.

    Attributes:
        module: the module.
        path: its path.
        again: whether a backward pass calls it, as in checkpointing.
    """

    module: torch.nn.Module
    path: str
    again: bool


class _EachThreads(threading.local):
    def __init__(self) -> None:
        self.stack: list[Call] = []


class ModuleStack:
    """Tracks the modules that are being called, for as long as it is entered.

    Args:
        entered: is called with each module before it runs.
        left: is called with each call and what the module returned.
    """

    def __init__(
        self,
        entered: Callable[[torch.nn.Module], None] = lambda _: None,
        left: Callable[[Call, Any], None] = lambda *_: None,
    ) -> None:
        self._entered = entered
        self._left = left
        self._each = _EachThreads()
        self._naming = threading.Lock()
        self._paths: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()
        self._roots: set[str] = set()
        self._watch = ExitStack()

    def __enter__(self) -> ModuleStack:
        self._watch.enter_context(subscribed(module_call=self._around_call))
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.close()

    def _around_call(
        self, original: Any, module: torch.nn.Module, *args: Any, **kwargs: Any
    ) -> Any:
        again = torch._C._current_graph_task_id() != -1
        stack = self._each.stack
        stack.append(Call(module, self.path_of(module), again))
        try:
            self._entered(module)
            output = original(module, *args, **kwargs)
            self._left(stack[-1], output)
            return output
        finally:
            stack.pop()

    @property
    def top(self) -> Call | None:
        """The innermost call of this thread; None outside of modules."""
        stack = self._each.stack
        return stack[-1] if stack else None

    def path(self) -> str | None:
        """Return the innermost module's path, such as ``layers.3.mlp``; None outside of modules.

        An outermost module's path is its class name. Paths below the first such module start below
        it; paths below any further one start with its own path.
        """
        return self.top.path if self.top else None

    def calls(self) -> list[Call]:
        """Return all modules that were seen, with their paths."""
        return [Call(module, path, again=False) for module, path in self._paths.items()]

    def parameter_names(self) -> dict[int, str]:
        """Return the parameter names of all modules that were seen, by the parameter's id."""
        return {
            id(parameter): f"{path}.{name}"
            for module, path in list(self._paths.items())
            for name, parameter in module.named_parameters(recurse=False)
        }

    def path_of(self, module: torch.nn.Module) -> str:
        """Return the path of a module that is being called or is about to be."""
        with self._naming:
            if module not in self._paths:
                self._name_all(module)
            return self._paths[module]

    def _name_all(self, root: torch.nn.Module) -> None:
        """Name a module that was called from outside of any, and all modules below it."""
        original = getattr(root, "_orig_mod", root)
        kind = name = type(original).__name__
        number = 1
        while name in self._roots:
            number += 1
            name = f"{kind}#{number}"
        prefix = f"{name}." if self._roots else ""
        self._roots.add(name)
        self._paths[root] = name
        for path, module in original.named_modules():
            self._paths.setdefault(module, prefix + path if path else name)
