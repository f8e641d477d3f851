"""Note how an arm trains: its optimizers' hyperparameters, and the learning rate of every step."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

from torch.optim import Optimizer

from pytest_amp.lab.watch.made import made_at
from pytest_amp.lab.watch.source import location
from pytest_amp.observations import OptimizerUse

# How an optimizer is implemented, which does not change what it computes.
_IMPLEMENTATION = frozenset(("params", "foreach", "fused", "capturable", "differentiable"))


class RecipeNotes:
    """Notes each optimizer's settings at its first step, and its learning rates at all steps."""

    def __init__(self) -> None:
        self._first: dict[int, OptimizerUse] = {}
        self._rates: defaultdict[int, list[float | None]] = defaultdict(list)

    def step(self, optimizer: Optimizer, number: int) -> None:
        """Note a step, whether it is taken or skipped.

        Args:
            optimizer: the optimizer that steps.
            number: its number in the run.
        """
        if number not in self._first:
            self._first[number] = OptimizerUse(
                type(optimizer).__name__,
                _settings(optimizer),
                location(),
                made_at=made_at(optimizer),
            )
        rate = optimizer.param_groups[0].get("lr") if optimizer.param_groups else None
        # A rate that is a tensor may be on a device, which would have to be waited for.
        self._rates[number].append(float(rate) if isinstance(rate, (int, float)) else None)

    def read(self) -> tuple[OptimizerUse, ...]:
        """Return what was noted, in the order of the optimizers' numbers."""
        return tuple(
            replace(self._first[number], rates=tuple(self._rates[number]))
            for number in sorted(self._first)
        )


def _settings(optimizer: Optimizer) -> dict[str, str]:
    """Return the settings of all groups, each as text, by name; the group's number is added."""
    several = len(optimizer.param_groups) > 1
    return {
        f"{name} of group {number}" if several else name: _text(value)
        for number, group in enumerate(optimizer.param_groups)
        for name, value in group.items()
        if name not in _IMPLEMENTATION and _text(value)
    }


def _text(value: Any) -> str:
    """Write a plain setting; "" for tensors and other objects, which are not compared."""
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(_text, value))})"
    return f"{value:g}" if isinstance(value, float) else str(value) * isinstance(value, (int, str))
