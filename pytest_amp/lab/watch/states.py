"""Reduced tensors from before the step, and the values that were computed from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from pytest_amp.lab.watch.repeating import widened

# A difference of two nearly equal values, relative to them: what an update really added.
APPLIED = 2**-4


@dataclass(eq=False)
class State:
    """A reduced tensor that is older than the step.

    Attributes:
        before: a sample of what it held before the step.
        numel: its number of elements.
        held: its memory.
        tensor: the tensor, once it was updated.
        location: the user's line of the last update.
        at_random: whether random numbers took part, as in stochastic rounding.
        compensated: whether the step looked at what an update did, as Kahan's sum does.
    """

    before: torch.Tensor
    numel: int
    held: StorageWeakRef
    tensor: torch.Tensor | None = None
    location: str | None = None
    at_random: bool = False
    compensated: bool = False

    @property
    def nudge(self) -> torch.Tensor:
        """By how much the value is moved to see what follows it."""
        return widened(self.before).abs() / 8 + 1e-3


@dataclass
class Value:
    """A value that was computed from states.

    Attributes:
        held: its memory. A weak reference keeps its address from being used again.
        actual: a sample of what the tensor holds.
        exact: what it would hold in float64; None if it is only known to be random.
        nudged: by state, what it would hold if that state were larger by its nudge.
        random: whether random numbers took part.
        location: the user's line that computed it.
    """

    held: StorageWeakRef
    actual: torch.Tensor
    exact: torch.Tensor | None = None
    nudged: Mapping[State, torch.Tensor] = field(default_factory=dict)
    random: bool = False
    location: str | None = None


def is_heir(value: Value, state: State) -> bool:
    """Return whether a value was computed from a state, has its dtype, and is still there."""
    return (
        state in value.nudged
        and not value.random
        and value.actual.dtype == state.before.dtype
        and not value.held.expired()
    )


def note_compensation(nudged: Iterable[State], difference: torch.Tensor) -> None:
    """Note it if a difference of what came from a state is so small that it is an update's."""
    size = widened(difference).abs().mean()
    for state in nudged:
        state.compensated |= bool(size <= APPLIED * widened(state.before).abs().mean())


def counts(state: State, value: Value) -> tuple[int, int]:
    """Count the sampled elements that should have changed, and those of them that did not.

    An average that is as near to what it follows as its dtype allows has nowhere to go. Where it is
    going follows from its slope: it moves by the same share of the rest of the way each time.
    """
    assert value.exact is not None
    before, exact = widened(state.before), value.exact
    info = torch.finfo(state.before.dtype)
    change = exact - before
    slope = (value.nudged[state] - exact) / state.nudge
    size = before.abs()
    wants = (
        exact.isfinite()
        & (change.abs() > 64 * torch.finfo(exact.dtype).eps * size)
        & (torch.maximum(size, exact.abs()) >= info.tiny)
        & ~((change / (1 - slope)).abs() <= 1.001 * info.eps / 2 * size)
    )
    lost = wants & (value.actual == state.before)
    return int(wants.sum()), int(lost.sum())
