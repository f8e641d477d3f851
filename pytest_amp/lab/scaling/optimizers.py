"""Find a run's optimizers by their first steps, and what they train."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.fingerprint import digest, sample
from pytest_amp.lab.watch.tensors import size

__tracebackhide__ = unless_our_bug


class Trained:
    """A run's optimizers, in the order of their first steps, and the parameters that they train."""

    def __init__(self) -> None:
        self.optimizers: list[Optimizer] = []
        self.parameters: list[torch.Tensor] = []
        self.owners: list[int] = []  # the number of each parameter's optimizer
        self._start: list[str] = []
        self._samples: list[tuple[float, ...]] = []
        self._with_gradient: set[int] = set()

    @property
    def start(self) -> tuple[str, ...] | None:
        """Digests of the parameters before their optimizer's first step; None without any."""
        return tuple(self._start) if self.optimizers else None

    @property
    def samples(self) -> tuple[tuple[float, ...], ...]:
        """What `sample` returns for each parameter, taken at the same moment."""
        return tuple(self._samples)

    @property
    def moved(self) -> bool | None:
        """Whether the parameters are elsewhere than they started; None without any."""
        return digest(self.parameters) != self.start if self.parameters else None

    def held(self) -> dict[str, int]:
        """Return the bytes of the parameters, their gradients and the optimizers' state."""
        gradients = [param.grad for param in self.parameters if param.grad is not None]
        state = [
            value
            for optimizer in self.optimizers
            for values in optimizer.state.values()
            if isinstance(values, dict)
            for value in values.values()
            if isinstance(value, torch.Tensor)
        ]
        kinds = {"parameters": self.parameters, "gradients": gradients, "optimizer state": state}
        return {kind: sum(map(size, tensors)) for kind, tensors in kinds.items()}

    def has_gradient(self, parameter: torch.Tensor) -> bool:
        """Return whether the parameter had a gradient at any of its optimizer's steps."""
        return id(parameter) in self._with_gradient

    def note_gradients(self, optimizer: Optimizer) -> None:
        """Note which parameters have a gradient at this step of their optimizer."""
        self._with_gradient.update(
            id(param)
            for group in optimizer.param_groups
            for param in group["params"]
            if param.grad is not None
        )

    def number(self, optimizer: Optimizer) -> int:
        """Return the optimizer's number.

        An optimizer that is new is looked at first, before it moves anything.
        """
        for number, known in enumerate(self.optimizers):
            if known is optimizer:
                return number
        self.optimizers.append(optimizer)
        known_parameters = set(map(id, self.parameters))
        for group in optimizer.param_groups:
            new = [param for param in group["params"] if id(param) not in known_parameters]
            self.parameters.extend(new)
            self.owners.extend(len(self.optimizers) - 1 for _ in new)
            self._start.extend(digest(new))
            self._samples.extend(map(sample, new))
        return len(self.optimizers) - 1
