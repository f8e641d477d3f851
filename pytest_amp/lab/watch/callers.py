"""Tell who calls an operator: the module, the phase of the step, and the custom function."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.composites import Composites, next_node
from pytest_amp.lab.watch.modules import ModuleStack
from pytest_amp.lab.watch.source import location
from pytest_amp.lab.watch.threads import Composite, Here, Threads
from pytest_amp.observations import Phase

__tracebackhide__ = unless_our_bug


class Caller(NamedTuple):
    """Who calls an operator.

    Attributes:
        module: the module's path.
        phase: the phase of the step.
        autocast: whether autocast is in force.
        function: the custom autograd function.
        composite: the call that may be a single kernel elsewhere.
        forward: in a backward pass, the line of the forward call.
    """

    module: str | None
    phase: Phase
    autocast: bool = False
    function: str | None = None
    composite: Composite | None = None
    forward: str | None = None


class Callers:
    """Remembers which call made each autograd node, and so whose backward pass it is in.

    Args:
        threads: knows the place of each thread.
        modules: knows the modules that are being called.
    """

    def __init__(self, threads: Threads, modules: ModuleStack) -> None:
        self._threads = threads
        self._modules = modules
        self.composites = Composites(threads)
        self._function_nodes: dict[str, str] = {}
        self._made: dict[int, tuple[str | None, bool, str | None]] = {}
        self._last_node = -1

    def caller(self, here: Here, is_update: bool) -> Caller:
        """Return who calls.

        Args:
            here: the place of the calling thread.
            is_update: whether an optimizer is doing its own work.
        """
        inside = here.functions[-1] if here.functions else None
        if is_update:
            return Caller(None, "update", function=inside)
        call = self._modules.top
        if torch._C._current_graph_task_id() == -1 or (call is not None and call.again):
            path = call.path if call is not None else None
            node_made = next_node()
            # Each thread numbers its own nodes. The first call to see a new node made it.
            if here.sender is None and node_made != self._last_node:
                self._last_node = node_made
                self._made[node_made - 1] = path, here.autocast, location()
            phase: Phase = "recompute" if call is not None and call.again else "forward"
            return Caller(path, phase, here.autocast, inside, here.composite)
        node: Any = torch._C._current_autograd_node()
        if node is None:
            return Caller(None, "backward", function=inside)
        path, in_autocast, line = self._made.get(node._sequence_nr(), (None, False, None))
        inside = inside or self._function_nodes.get(node.name())
        composite = here.composite or self.composites.behind(node)
        return Caller(path, "backward", in_autocast, inside, composite, line)

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
