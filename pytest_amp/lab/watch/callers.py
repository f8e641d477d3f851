"""Tell who calls an operator: the module, the phase of the step, and the custom function."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.modules import ModuleStack
from pytest_amp.lab.watch.source import location
from pytest_amp.lab.watch.threads import Here, Threads
from pytest_amp.observations import Phase

__tracebackhide__ = unless_our_bug


class Callers:
    """Remembers which call made each autograd node, and so whose backward pass it is in.

    Args:
        threads: knows the place of each thread.
        modules: knows the modules that are being called.
    """

    def __init__(self, threads: Threads, modules: ModuleStack) -> None:
        self._threads = threads
        self._modules = modules
        self._function_nodes: dict[str, str] = {}
        self._made: dict[int, tuple[str | None, bool, str | None]] = {}
        self._last_node = -1

    def caller(
        self, here: Here, is_update: bool
    ) -> tuple[str | None, Phase, bool, str | None, str | None]:
        """Return the module, the phase, whether autocast is in force, and the custom function.

        In a backward pass, the line of the forward call follows.

        Args:
            here: the place of the calling thread.
            is_update: whether an optimizer is doing its own work.
        """
        inside = here.functions[-1] if here.functions else None
        if is_update:
            return None, "update", False, inside, None
        call = self._modules.top
        if torch._C._current_graph_task_id() == -1 or (call is not None and call.again):
            path = call.path if call is not None else None
            node_made = _next_node()
            # Each thread numbers its own nodes. The first call to see a new node made it.
            if here.sender is None and node_made != self._last_node:
                self._last_node = node_made
                self._made[node_made - 1] = path, here.autocast, location()
            phase: Phase = "recompute" if call is not None and call.again else "forward"
            return path, phase, here.autocast, inside, None
        node: Any = torch._C._current_autograd_node()
        if node is None:
            return None, "backward", False, inside, None
        path, in_autocast, line = self._made.get(node._sequence_nr(), (None, False, None))
        inside = inside or self._function_nodes.get(node.name())
        return path, "backward", in_autocast, inside, line

    @contextmanager
    def around_function(self, cls: type) -> Iterator[None]:
        """Keep in mind that a custom autograd function is running."""
        name = cls.__name__
        self._function_nodes[f"{name}Backward"] = name
        functions = self._threads.here.functions
        functions.append(name)
        try:
            yield
        finally:
            functions.pop()


def _next_node() -> int:
    number: Any = torch._C._autograd._get_sequence_nr()
    return int(number)
