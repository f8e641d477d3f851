"""Record where backward passes begin, whether autocast is in force there, and from which losses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.source import location
from pytest_amp.lab.watch.tensors import Tensors

__tracebackhide__ = unless_our_bug


class BackwardPasses:
    """Records a step's backward passes. It is told of each that begins.

    Attributes:
        at: the user's line of the first.
        under_autocast: how many began while autocast was in force.
        under_autocast_at: the user's line of the first of those.
    """

    def __init__(self) -> None:
        self.at: str | None = None
        self.under_autocast = 0
        self.under_autocast_at: str | None = None
        self._roots: list[torch.Tensor] = []

    def begins(self, roots: Tensors, autocast: bool) -> None:
        """Take note of a pass that begins at these roots, with or without autocast in force."""
        self.at = self.at or location()
        if autocast:
            self.under_autocast += 1
            self.under_autocast_at = self.under_autocast_at or location()
        self._roots += [root.detach().clone() for root in roots if root.numel() == 1]

    def scale(self, returned: Sequence[float]) -> float | None:
        """Return the largest loss of a backward pass / the largest loss that was returned."""
        largest = max((abs(loss) for loss in returned), default=0.0)
        passed = max((abs(float(root)) for root in self._roots), default=0.0)
        return passed / largest if largest and passed and math.isfinite(passed / largest) else None
