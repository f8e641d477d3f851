"""Record the work of a step whose FLOPs can't be counted."""

from __future__ import annotations

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.events import OptimizerSteps
from pytest_amp.lab.watch.tensors import Tensors, is_reduced

__tracebackhide__ = unless_our_bug


class Uncounted:
    """Records what has no formula, and what no dispatch mode sees.

    Args:
        optimizers: tells which optimizer is at work.

    Attributes:
        unknown: the operators that do much work and have no formula.
        hidden: the kinds of work that bypassed the dispatcher.
        reduced: whether any of that was, or may have been, in a reduced dtype.
    """

    def __init__(self, optimizers: OptimizerSteps) -> None:
        self.unknown: dict[str, None] = {}
        self.hidden: dict[str, None] = {}
        self.reduced = False
        self._optimizers = optimizers

    def note_unknown(self, name: str, inputs: Tensors, outputs: Tensors) -> None:
        """Take note of an operator without a formula."""
        self.unknown[name] = None
        self.reduced |= any(map(is_reduced, (*inputs, *outputs)))

    def note_hidden(self, what: str) -> None:
        """Take note of work that bypassed the dispatcher, unless it is an optimizer's own."""
        if not self._optimizers.at_work:
            self.hidden[what] = None
            self.reduced = True
