"""Follow what a step casts up from a reduced dtype, through the operators that it goes into."""

from __future__ import annotations

from typing import Any

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.tensors import TO_COPY, Tensors, is_reduced, storage
from pytest_amp.lab.watch.threads import Threads
from pytest_amp.lab.watch.weights import Weights

__tracebackhide__ = unless_our_bug


class WideValues:
    """Knows the memory of what was cast up. It is told of each operator, once it has run.

    Args:
        weights: knows the weights.
        threads: knows where a call that casts a tensor is running.
    """

    def __init__(self, weights: Weights, threads: Threads) -> None:
        self._weights = weights
        self._threads = threads
        self._places: set[int] = set()

    def around_cast(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Keep in mind that a call is running that casts a tensor."""
        here = self._threads.here
        here.casting += 1
        try:
            return original(*args, **kwargs)
        finally:
            here.casting -= 1

    def note(self, func: Any, inputs: Tensors, outputs: Tensors, places: set[int]) -> None:
        """Follow what was cast up through an operator, whose inputs are in these places."""
        is_wide = casts_up(func, inputs, outputs) or self.reach(places)
        if not is_wide and not self._places:
            return
        for tensor in outputs:
            note = self._places.add if is_wide and not is_reduced(tensor) else self._places.discard
            note(storage(tensor))

    def reach(self, places: set[int]) -> bool:
        """Return whether the step has cast up what is in one of the places, and none is a weight's.

        Args:
            places: the memory of an operator's inputs.
        """
        return not places.isdisjoint(self._places) and self._weights.absent_from(places)


def casts_up(func: Any, inputs: Tensors, outputs: Tensors) -> bool:
    """Return whether an operator casts a tensor up from a reduced dtype."""
    return func is TO_COPY and any(map(is_reduced, inputs)) and not any(map(is_reduced, outputs))
