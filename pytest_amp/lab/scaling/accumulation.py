"""Follow backward passes that add to the same gradients, and what changes the scale meanwhile."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.optim import Optimizer

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.source import location
from pytest_amp.lab.watch.tensors import floating

__tracebackhide__ = unless_our_bug


class Accumulation:
    """Follows backward passes, scalers' updates and optimizers' steps, in their order.

    An update may come while an optimizer holds gradients that it has not stepped on. It is in their
    midst if the next backward pass finds them still there. It is too early if the scaler's step on
    them comes next.

    Attributes:
        updates_in_midst: how many updates were in the midst of gradients.
        updates_before_step: how many updates were too early.
        updated_at: the user's line of the first of either.
        most_passes: the most backward passes between two steps of one optimizer.
    """

    def __init__(self) -> None:
        self.updates_in_midst = 0
        self.updates_before_step = 0
        self.updated_at: str | None = None
        self.most_passes = 0
        self._passes = 0
        self._passes_before: Counter[Optimizer] = Counter()
        self._line: str | None = None
        self._waiting: set[Optimizer] = set()
        self._updated: set[Optimizer] = set()

    def backward(self, known: list[Optimizer], accumulates: bool) -> None:
        """Note that a backward pass begins.

        Args:
            known: the optimizers that may get gradients.
            accumulates: whether it adds to gradients, as ``torch.autograd.grad`` does not.
        """
        self._passes += accumulates
        for optimizer in list(self._updated):
            self._updated.discard(optimizer)
            found = _holds_gradients(optimizer)
            self.updates_in_midst += found
            self._place(found)
        self._waiting.update(known)

    def update(self) -> None:
        """Note an update of a scaler."""
        self._updated.update(filter(_holds_gradients, self._waiting))
        if self._updated and self.updated_at is None:
            self._line = location()

    def step(self, optimizer: Optimizer, by_scaler: bool) -> None:
        """Note an optimizer's step, whether taken or skipped."""
        self.most_passes = max(self.most_passes, self._passes - self._passes_before[optimizer])
        self._passes_before[optimizer] = self._passes
        if by_scaler and optimizer in self._updated:
            found = _holds_gradients(optimizer)
            self.updates_before_step += found
            self._place(found)
        self._waiting.discard(optimizer)
        self._updated.discard(optimizer)

    def _place(self, found: bool) -> None:
        if found and self.updated_at is None:
            self.updated_at = self._line


def _holds_gradients(optimizer: Any) -> bool:
    """Return whether the optimizer has a gradient that is not zero."""
    grads = (param.grad for group in optimizer.param_groups for param in group["params"])
    parts = (part for grad in grads if grad is not None for part in floating(grad))
    return any(bool((part != 0).any()) for part in parts)
