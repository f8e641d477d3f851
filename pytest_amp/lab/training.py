"""A whole training, as a setup describes it, and as steps of the experiment."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pytest_amp.errors import AmpError, unless_our_bug
from pytest_amp.lab.arm import Arm
from pytest_amp.lab.watch.events import OptimizerSteps, subscribed
from pytest_amp.lab.watch.losses import LossCurves

__tracebackhide__ = unless_our_bug

ACCURACY = "accuracy"
# If no optimizer has stepped after so many batches, each batch counts as a step.
_MOST_MICRO_BATCHES = 256


@dataclass(frozen=True)
class Training:
    """What ``setup(arm)`` returns for `amp_benchmark.train`.

    Attributes:
        step (Callable): takes a batch, trains on it, and returns the loss, or a dict with a
            ``"loss"`` and, if there is one, an ``"accuracy"``. With gradient accumulation, the
            optimizer steps in some of the calls.
        batches (Iterable): the batches, such as a data loader; they are iterated anew in each
            epoch.
        evaluate (Callable | None): takes nothing, and returns a dict with ``"loss"`` and, if there
            is one, ``"accuracy"``, as plain numbers or scalar tensors.
        epochs (int): how many epochs to train.
    """

    step: Callable[[Any], Any]
    batches: Iterable[Any]
    evaluate: Callable[[], Mapping[str, Any]] | None = None
    epochs: int = 1

    def __post_init__(self) -> None:
        for name in ("step", "evaluate"):
            given = getattr(self, name)
            if not callable(given) and not (name == "evaluate" and given is None):
                raise AmpError(f"Training({name}=...) takes a function, not {given!r}")
        if not isinstance(self.epochs, int) or self.epochs < 1:
            raise AmpError(f"Training(epochs={self.epochs!r}): give a whole number of 1 or more")
        if not isinstance(self.batches, Iterable) and not hasattr(self.batches, "__getitem__"):
            raise AmpError(
                f"Training(batches=...) takes batches, such as a DataLoader, not {self.batches!r}"
            )
        if isinstance(self.batches, Iterator):
            raise AmpError(
                "Training(batches=...) takes what can be iterated anew in each epoch, such as a "
                f"list or a DataLoader, not a {type(self.batches).__name__}, which is used up"
            )


def batches_of(training: Training, epoch: int) -> Iterator[Any]:
    """Yield the batches of an epoch.

    Raises:
        AmpError: there is none.
    """
    empty = True
    for batch in training.batches:
        empty = False
        yield batch
    if empty:
        raise AmpError(
            f"Training(batches=...) has no batch in epoch {epoch}: give what can be iterated anew "
            "in each epoch, such as a list or a DataLoader"
        )


class Steps:
    """A training as steps of the experiment: each runs the batches of one optimizer's step."""

    def __init__(self, training: Training) -> None:
        self.training = training
        # Not a method's: a loader's workers end with the iterator, which no cycle may keep alive.
        self._batches = _endless(training)
        self._per_step: int | None = None

    def __call__(self) -> Any:
        """Run one step, and return the mean of its batches' losses, by key."""
        if self._per_step is None:
            returned = self._first()
        else:
            curves = LossCurves()
            returned = [self._one(curves) for _ in range(self._per_step)]
        return _mean(returned)

    def _one(self, curves: LossCurves) -> dict[str, Any]:
        """Run one batch, and return its losses; `curves` refuses what is none."""
        losses = losses_of(self.training.step(next(self._batches)))
        curves.append(losses)
        return losses

    def _first(self) -> list[dict[str, Any]]:
        """Run batches until an optimizer steps, or a scaler withholds that."""
        attempts = 0

        def tried(*_: Any) -> None:
            nonlocal attempts
            attempts += 1

        def around(original: Any, *args: Any, **kwargs: Any) -> Any:
            tried()
            return original(*args, **kwargs)

        returned: list[dict[str, Any]] = []
        curves = LossCurves()
        with subscribed(scaler_step=around), OptimizerSteps(tried):
            while not attempts and len(returned) < _MOST_MICRO_BATCHES:
                returned.append(self._one(curves))
        self._per_step = len(returned) if attempts else 1
        return returned


def _endless(training: Training) -> Iterator[Any]:
    for epoch in itertools.count(1):
        yield from batches_of(training, epoch)


def as_steps(setup: Callable[[Arm], Training]) -> Callable[[Arm], Steps]:
    """Return a setup of steps, made of one of a training.

    Raises:
        AmpError: it returned something else than a training.
    """

    def setup_steps(arm: Arm) -> Steps:
        training = setup(arm)
        if not isinstance(training, Training):
            raise AmpError(
                f"setup(arm) returned {type(training).__name__}, not a pytest_amp.Training"
            )
        return Steps(training)

    return setup_steps


def losses_of(returned: Any) -> dict[str, Any]:
    """Return the losses that a step returned, by key; an accuracy is none.

    Raises:
        AmpError: it returned an accuracy alone.
    """
    if not isinstance(returned, Mapping) or hasattr(returned, "loss"):
        return {"loss": returned}
    losses = {str(key): value for key, value in returned.items() if key != ACCURACY}
    if returned and not losses:
        raise AmpError("the step returned an accuracy and no loss: return its loss too")
    return losses


def accuracy_of(returned: Any) -> Any:
    """Return the accuracy that a step returned beside its loss; None if there is none."""
    return returned.get(ACCURACY) if isinstance(returned, Mapping) else None


def _mean(returned: list[dict[str, Any]]) -> Any:
    if len(returned) == 1:
        return returned[0]
    return {key: sum(map(_detached, (each[key] for each in returned))) / len(returned)
            for key in returned[0]}  # fmt: skip


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value
