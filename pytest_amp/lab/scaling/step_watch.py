"""Note the steps that a GradScaler skips in one arm, and withhold them in the other.

Scalers, optimizers and schedulers are watched through their classes, whoever made the instance.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.scaling.accumulation import Accumulation
from pytest_amp.lab.scaling.optimizers import Trained
from pytest_amp.lab.scaling.recipe import RecipeNotes
from pytest_amp.lab.scaling.scaler import ScalerLog
from pytest_amp.lab.watch.events import Closure, OptimizerSteps, subscribed
from pytest_amp.lab.watch.made import made_at, noted
from pytest_amp.lab.watch.source import location
from pytest_amp.observations import ScalerStep, ScalerUse

__tracebackhide__ = unless_our_bug

# (the optimizer's number, which of its steps from 0); optimizers are numbered by their first steps
Attempt = tuple[int, int]
Around = Callable[..., Any]


@dataclass(frozen=True)
class Replay:
    """The steps that one arm's scaler skipped, to be withheld in the other arm.

    Attributes:
        skips: the skipped steps.
        schedules: how often schedulers moved in each step of the experiment.
    """

    skips: frozenset[Attempt]
    schedules: tuple[int, ...]

    def may_schedule(self, step: int, count: int) -> bool:
        """Return whether the first arm also had a `count`-th move of a scheduler in this step."""
        return step >= len(self.schedules) or count <= self.schedules[step]


class _Withheld(BaseException):
    """Ends an optimizer's step before it begins; it never leaves a scaler's ``step()``."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = loss


class StepWatch:
    """Notes what scalers, optimizers and schedulers do, and repeats another run's skips."""

    def __init__(self, replay: Replay | None = None) -> None:
        self.log = ScalerLog()
        self.trained = Trained()
        self.recipe = RecipeNotes()
        self._replay = replay
        self._steps: Counter[int] = Counter()
        self._attempts: list[Attempt] = []
        self._within_scaler: Attempt | None = None
        self._in_scaler = False
        self._to_give_back: dict[Optimizer, Callable[[], None]] = {}
        self._last_was_withheld = False
        self._making_schedule = False
        self._schedules: list[int] = [0]
        self._scaled = 0
        self._scale_calls_when_off = 0
        self._accumulation = Accumulation()
        self._stepped: list[tuple[int, torch.Tensor | float]] = []
        self._moves: list[tuple[int, Any]] = []
        self._moved_at: list[tuple[Any, str | None]] = []
        self._made = 0
        self._made_at: str | None = None
        self._scaled_at: str | None = None
        self._growth_interval: int | None = None

    def next_step(self) -> None:
        """Begin another step of the experiment."""
        self._schedules.append(0)

    def replay(self) -> Replay | None:
        """Return what another arm must withhold to take the same steps; None if nothing."""
        pairs = zip(self._attempts, self.log.skipped(), strict=True)
        skips = frozenset(attempt for attempt, skipped in pairs if skipped)
        return Replay(skips, tuple(self._schedules)) if skips else None

    def use(self) -> ScalerUse:
        """Return what scalers and schedulers did so far. Synchronizes."""
        steps = zip(self._attempts, self._stepped, self.log.skipped(), strict=True)
        return ScalerUse(
            optimizers=tuple(type(each).__name__ for each in self.trained.optimizers),
            scaled=self._scaled,
            updates=len(self.log.scales),
            updates_in_midst=self._accumulation.updates_in_midst,
            steps=tuple(
                ScalerStep(step, number, float(scale), skipped)
                for (number, _), (step, scale), skipped in steps
            ),
            updates_before_step=self._accumulation.updates_before_step,
            made_in_steps=self._made,
            scale_calls_when_off=self._scale_calls_when_off,
            moved_at={self._number_of(each): line for each, line in self._moved_at if line},
            updated_at=self._accumulation.updated_at,
            most_passes=self._accumulation.most_passes,
            made_at=self._made_at,
            scaled_at=self._scaled_at,
            growth_interval=self._growth_interval,
            moves=tuple((step, self._number_of(scheduler)) for step, scheduler in self._moves),
        )

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Watch what happens inside."""
        with (
            noted(),
            subscribed(
                scaler_made=self._around_making,
                scale=self._around_scale,
                scaler_step=self._around_scaler_step,
                update=self._around_update,
                schedule_made=self._around_making_schedule,
                schedule_step=self._around_schedule,
                backward=self._around_backward,
            ),
            OptimizerSteps(self._before_step, self._after_step, self._begin_step),
        ):
            try:
                yield
            finally:
                self._give_back()

    def _attempt(self, optimizer: Optimizer) -> Attempt:
        number = self.trained.number(optimizer)
        self.recipe.step(optimizer, number)
        self._steps[number] += 1
        return number, self._steps[number] - 1

    def _around_making(self, original: Around, scaler: Any, *args: Any, **kw: Any) -> None:
        original(scaler, *args, **kw)
        if scaler.is_enabled():
            self._made += 1
            self._made_at = made_at(scaler)

    def _around_scale(self, original: Around, scaler: Any, *args: Any, **kw: Any) -> Any:
        on = bool(scaler.is_enabled())
        if on and not self._scaled:
            self._scaled_at, self._growth_interval = location(), scaler.get_growth_interval()
            self._made_at = made_at(scaler)
        self._scaled += on
        self._scale_calls_when_off += not on
        return original(scaler, *args, **kw)

    def _around_scaler_step(self, original: Around, scaler: Any, *args: Any, **kw: Any) -> Any:
        if not scaler.is_enabled():
            return self._or_withheld(original, scaler, *args, **kw)
        optimizer = args[0] if args else kw["optimizer"]
        attempt = self._within_scaler = self._attempt(optimizer)
        self.trained.note_gradients(optimizer)
        self._accumulation.step(optimizer, by_scaler=True)
        try:
            result = self._or_withheld(original, scaler, *args, **kw)
        finally:
            self._within_scaler = None
        self._attempts.append(attempt)
        scale = self.log.scale_of(scaler)
        self._stepped.append((len(self._schedules) - 1, math.nan if scale is None else scale))
        self.log.stepped(scaler, optimizer)
        return result

    def _or_withheld(self, original: Around, *args: Any, **kw: Any) -> Any:
        self._in_scaler = True
        try:
            return original(*args, **kw)
        except _Withheld as withheld:
            return withheld.loss
        finally:
            self._in_scaler = False

    def _around_update(self, original: Around, scaler: Any, *args: Any, **kw: Any) -> Any:
        result = original(scaler, *args, **kw)
        if scaler.is_enabled():
            self.log.updated(scaler)
            self._accumulation.update()
        return result

    def _around_backward(self, original: Around, *args: Any, **kwargs: Any) -> Any:
        self._accumulation.backward(self.trained.optimizers, bool(kwargs.get("accumulate_grad")))
        return original(*args, **kwargs)

    def _around_making_schedule(self, original: Around, *args: Any, **kwargs: Any) -> None:
        self._making_schedule = True
        try:
            original(*args, **kwargs)
        finally:
            self._making_schedule = False

    def _around_schedule(self, original: Around, scheduler: Any, *args: Any, **kw: Any) -> Any:
        """Let a scheduler move on a withheld step only as often as it did on the skipped one.

        A scheduler also steps when it is created; that is not counted as a move.
        """
        if self._making_schedule:
            return original(scheduler, *args, **kw)
        self._schedules[-1] += 1
        if not args and not kw:  # a step with an explicit epoch may move on a skipped step
            self._moves.append((len(self._schedules) - 1, scheduler))
            if all(known is not scheduler for known, _ in self._moved_at):
                self._moved_at.append((scheduler, location()))
        step, count = len(self._schedules) - 1, self._schedules[-1]
        if self._last_was_withheld and self._replay and not self._replay.may_schedule(step, count):
            return None
        return original(scheduler, *args, **kw)

    def _number_of(self, scheduler: Any) -> int:
        """Return the number of the scheduler's optimizer; -1 if that never stepped.

        The scheduler may hold a wrapper of the optimizer, so parameter groups are compared.
        """
        groups = getattr(getattr(scheduler, "optimizer", None), "param_groups", None)
        known = [optimizer.param_groups for optimizer in self.trained.optimizers]
        return next((number for number, each in enumerate(known) if each is groups), -1)

    def _begin_step(self, optimizer: Optimizer, closure: Closure | None) -> Closure | None:
        attempt = self._within_scaler
        if attempt is None or attempt[0] != self.trained.number(optimizer):
            attempt = self._attempt(optimizer)
        self._last_was_withheld = self._replay is not None and attempt in self._replay.skips
        if not self._last_was_withheld:
            return closure
        with torch.enable_grad():  # as an optimizer would call it
            loss = None if closure is None else closure()
        self._before_step(optimizer)
        if _passes_over_none(optimizer):
            self._to_give_back[optimizer] = _without_gradients(optimizer)
        elif self._in_scaler:
            raise _Withheld(loss)
        else:
            self._to_give_back[optimizer] = _without_parameters(optimizer)
        return None if closure is None else lambda: loss

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        self.trained.note_gradients(optimizer)
        self._accumulation.step(optimizer, by_scaler=False)

    def _after_step(self, optimizer: Optimizer) -> None:
        give_back = self._to_give_back.pop(optimizer, None)
        if give_back is not None:
            give_back()

    def _give_back(self) -> None:
        for optimizer in list(self._to_give_back):
            self._after_step(optimizer)


def _passes_over_none(optimizer: Optimizer) -> bool:
    """Return whether the optimizer passes over parameters that have no gradient.

    torch's own optimizers do; a user's may not check.
    """
    return str(type(optimizer).step.__module__).startswith("torch.")


def _without_gradients(optimizer: Optimizer) -> Callable[[], None]:
    """Take the gradients away, and return a function that puts them back."""
    given = [param for group in optimizer.param_groups for param in group["params"]]
    taken = [(param, param.grad) for param in given]

    def give_back() -> None:
        for param, grad in taken:
            param.grad = grad

    for param in given:
        param.grad = None
    return give_back


def _without_parameters(optimizer: Optimizer) -> Callable[[], None]:
    """Take the parameters out of their groups, and return a function that puts them back."""
    groups = [(group, group["params"]) for group in optimizer.param_groups]

    def give_back() -> None:
        for group, parameters in groups:
            group["params"] = parameters

    for group, _ in groups:
        group["params"] = []
    return give_back


@contextmanager
def starting_at(scale: float | None) -> Iterator[None]:
    """Let new GradScalers start at the scale that the parity run found, with no search for it.

    If it found none, they start as they would.
    """
    if not scale or not math.isfinite(scale):
        yield
        return

    def around(original: Any, scaler: Any, *args: Any, **kwargs: Any) -> Any:
        if scaler._scale is None:
            scaler._init_scale = scale
        return original(scaler, *args, **kwargs)

    with subscribed(scale=around):
        yield
