"""Know a step's weights, where each was first used, and what was computed from them."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.source import location
from pytest_amp.lab.watch.tensors import Tensors, is_reduced, storage

__tracebackhide__ = unless_our_bug


class Weights:
    """The parameters and buffers of a step. It is told of modules, and of each operator.

    Args:
        trained: parameters that are known beforehand.

    Attributes:
        made: the memory that the step has made.
        reduced: whether an operator with FLOPs has worked on a weight in a reduced dtype.
    """

    def __init__(self, trained: Iterable[torch.Tensor] = ()) -> None:
        self.made: set[int] = set()
        self.reduced = False
        self._tensors = {storage(tensor): tensor for tensor in trained}
        self._first_uses: dict[int, str | None] = {}
        self._computed: set[int] = set()

    def note_module(self, module: torch.nn.Module) -> None:
        """Take note of the weights that a module holds itself."""
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            self._tensors.setdefault(storage(tensor), tensor)

    def note_made(self, read: set[int], written: Iterable[int]) -> None:
        """Take note of what an operator made, and of whether it read a weight.

        Args:
            read: the memory of its inputs.
            written: the memory of its outputs.
        """
        note = self._computed.discard if self.absent_from(read) else self._computed.add
        for place in written:
            if place not in read:
                self.made.add(place)
                note(place)

    def note_uses(self, places: set[int]) -> None:
        """Take note of the user's line that uses memory, where that is a weight's first use."""
        for used in (places & self._tensors.keys()) - self._first_uses.keys():
            self._first_uses[used] = location()

    def note_reduced(self, inputs: Tensors) -> None:
        """Take note of whether a weight in a reduced dtype is among an operator's inputs."""
        self.reduced |= any(map(self._includes, filter(is_reduced, inputs)))

    def place_of(self, weight: torch.Tensor) -> str | None:
        """Return the user's line of the first forward operator that used the weight."""
        return self._first_uses.get(storage(weight))

    def behind(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return the weight that has the tensor's memory."""
        return self._tensors.get(storage(tensor))

    def absent_from(self, places: set[int]) -> bool:
        """Return whether no weight has any of this memory."""
        return self._tensors.keys().isdisjoint(places)

    def any_computed(self, inputs: Tensors) -> bool:
        """Return whether one of the inputs was computed by the model, rather than given to it."""
        return any(
            storage(each) not in self._tensors
            and (each.requires_grad or storage(each) in self._computed)
            for each in inputs
        )

    def _includes(self, tensor: torch.Tensor) -> bool:
        """Return whether the tensor is a weight.

        If neither modules nor optimizers have shown any, whatever was there before the step counts.
        """
        place = storage(tensor)
        return place in self._tensors if self._tensors else place not in self.made
