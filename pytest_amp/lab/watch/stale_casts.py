"""Find casts of weights that outlive an update, and are used after it."""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import ref

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.events import OptimizerSteps
from pytest_amp.lab.watch.modules import ModuleStack
from pytest_amp.lab.watch.source import location
from pytest_amp.lab.watch.tensors import (
    TO_COPY,
    Tensors,
    is_reduced,
    memory,
    spread,
    storage,
    values,
)
from pytest_amp.lab.watch.threads import EnteredRegion, Threads
from pytest_amp.lab.watch.weights import Weights
from pytest_amp.observations import StaleCast

__tracebackhide__ = unless_our_bug


class _Cast(NamedTuple):
    """A weight's cast.

    Attributes:
        held: its memory.
        weight: the weight.
        version: how often the weight had been changed when it was cast.
        region: the outermost autocast region that it was made in.
    """

    held: StorageWeakRef
    weight: ref[torch.Tensor]
    version: int
    region: EnteredRegion | None = None


class StaleCasts:
    """Remembers weights' casts. It is told of each operator, before and after.

    Args:
        weights: knows the weights.
        threads: knows the autocast regions that are in force.
        modules: knows the modules that are being called.
        optimizers: tells which optimizer is at work.
    """

    def __init__(
        self, weights: Weights, threads: Threads, modules: ModuleStack, optimizers: OptimizerSteps
    ) -> None:
        self._weights = weights
        self._threads = threads
        self._modules = modules
        self._optimizers = optimizers
        # Weak references keep storages' addresses from being reused for tensors that kernels make
        # and no dispatch mode sees.
        self._casts: dict[int, _Cast] = {}
        self._stale: dict[str, StaleCast] = {}

    def before(self, inputs: Tensors, read: set[int]) -> None:
        """Note where a cast is used although its weight has been updated since.

        Args:
            inputs: the operator's floating point inputs.
            read: their memory.
        """
        if self._casts.keys().isdisjoint(read):
            return
        for tensor in inputs:
            cast = self._casts.get(storage(tensor))
            if cast is None or not is_reduced(tensor):
                continue
            weight = cast.weight()
            if weight is None or weight._version == cast.version or self._optimizers.at_work:
                continue
            if torch._C._current_graph_task_id() != -1:
                continue  # a backward pass needs the weights of its forward pass
            used, now = values(tensor), values(weight)
            if used is None or now is None:
                continue
            if not torch.equal(spread(used), spread(now.to(used.dtype))):
                self._note(weight, cast)

    def after(self, func: Any, inputs: Tensors, outputs: Tensors) -> None:
        """Remember what the operator made, if that is a weight's cast to a reduced dtype."""
        if func is TO_COPY and outputs and is_reduced(outputs[0]):
            weight = self._weights.behind(inputs[0]) if inputs else None
            if weight is not None:
                held = memory(outputs[0])
                if held is not None:
                    within = self._threads.here.entered
                    self._casts[storage(outputs[0])] = _Cast(
                        StorageWeakRef(held), ref(weight), weight._version, *within[:1]
                    )

    @property
    def has_casts(self) -> bool:
        """Whether there is any cast of a weight."""
        return bool(self._casts)

    def found(self) -> tuple[StaleCast, ...]:
        """Return the casts that were used when they were stale, one for each module."""
        return tuple(self._stale.values())

    def _note(self, weight: torch.Tensor, cast: _Cast) -> None:
        module = self._modules.path() or "outside of modules"
        if module not in self._stale:
            outermost = self._threads.here.entered[:1]
            within = outermost and outermost[0] is cast.region
            self._stale[module] = StaleCast(
                module,
                self._modules.parameter_names().get(id(weight)),
                location(),
                outermost[0].location if within else None,
            )
