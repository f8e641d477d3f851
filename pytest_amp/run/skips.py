"""Steps that a GradScaler skips: noted in one arm, withheld in the other, not counted as speed.

Scalers, optimizers and schedulers are watched on their classes, whoever made the instance.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from pytest_amp.errors import none_of_ours
from pytest_amp.records import ScalerStep, ScalerUse
from pytest_amp.run.accumulation import Accumulation
from pytest_amp.run.fingerprint import digest
from pytest_amp.run.patches import patched
from pytest_amp.run.scaler import ScalerLog
from pytest_amp.run.tensors import size

__tracebackhide__ = none_of_ours

# (the optimizer's number, by the order of their first steps; which of its steps, from 0)
Attempt = tuple[int, int]
Around = Callable[..., Any]


class Trained:
    """The optimizers of a run, in the order of their first steps, and what they train."""

    def __init__(self) -> None:
        self.optimizers: list[Optimizer] = []
        self.parameters: list[torch.Tensor] = []
        self._start: list[str] = []
        self._with_gradient: set[int] = set()

    @property
    def start(self) -> tuple[str, ...] | None:
        """Digests of the parameters before the first step of the first optimizer that has them."""
        return tuple(self._start) if self.optimizers else None

    @property
    def moved(self) -> bool | None:
        """Whether the parameters are elsewhere than they started; None without any."""
        return digest(self.parameters) != self.start if self.parameters else None

    def held(self) -> dict[str, int]:
        """Bytes of the parameters, of their gradients and of the optimizers' state."""
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
        """Whether it had a gradient at any of its optimizer's steps."""
        return id(parameter) in self._with_gradient

    def note_gradients(self, optimizer: Optimizer) -> None:
        """Which parameters have a gradient at this step of their optimizer."""
        self._with_gradient.update(
            id(param)
            for group in optimizer.param_groups
            for param in group["params"]
            if param.grad is not None
        )

    def number(self, optimizer: Optimizer) -> int:
        """Which one it is. One that is new is looked at before it moves anything."""
        for number, known in enumerate(self.optimizers):
            if known is optimizer:
                return number
        self.optimizers.append(optimizer)
        known_parameters = set(map(id, self.parameters))
        for group in optimizer.param_groups:
            new = [param for param in group["params"] if id(param) not in known_parameters]
            self.parameters.extend(new)
            self._start.extend(digest(new))
        return len(self.optimizers) - 1


@dataclass(frozen=True)
class Replay:
    """The steps that one arm's scaler skipped, to be withheld in the other arm.

    `schedules`: how often a scheduler moved in each step of the experiment.
    """

    skips: frozenset[Attempt]
    schedules: tuple[int, ...]

    def may_schedule(self, step: int, count: int) -> bool:
        """Whether the `count`-th move of a scheduler in this step happened there too."""
        return step >= len(self.schedules) or count <= self.schedules[step]


class StepWatch:
    """Notes what scalers, optimizers and schedulers do in a run, and repeats another's skips."""

    def __init__(self, replay: Replay | None = None) -> None:
        self.log = ScalerLog()
        self.trained = Trained()
        self._replay = replay
        self._steps: Counter[int] = Counter()
        self._attempts: list[Attempt] = []
        self._within_scaler: Attempt | None = None
        self._withheld: dict[Optimizer, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._last_was_withheld = False
        self._schedules: list[int] = [0]
        self._scaled = 0
        self._accumulation = Accumulation()
        self._stepped: list[tuple[int, torch.Tensor | float]] = []
        self._moves: list[tuple[int, int]] = []

    def next_step(self) -> None:
        """Between two steps of the experiment."""
        self._schedules.append(0)

    def replay(self) -> Replay | None:
        """What another arm has to withhold to apply the same steps; None where nothing is."""
        pairs = zip(self._attempts, self.log.skipped(), strict=True)
        skips = frozenset(attempt for attempt, skipped in pairs if skipped)
        return Replay(skips, tuple(self._schedules)) if skips else None

    def use(self) -> ScalerUse:
        """What scalers and schedulers did so far. Synchronizes."""
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
            moves=tuple(self._moves),
        )

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Watch what happens inside."""
        with ExitStack() as stack:
            stack.enter_context(wrapped(GradScaler, "scale", self._around_scale))
            stack.enter_context(wrapped(GradScaler, "step", self._around_scaler_step))
            stack.enter_context(wrapped(GradScaler, "update", self._around_update))
            stack.enter_context(wrapped(LRScheduler, "step", self._around_schedule))
            engine = patched(torch.autograd, "_engine_run_backward", self._around_backward)
            stack.enter_context(engine)
            before = register_optimizer_step_pre_hook(self._before_step)
            stack.callback(before.remove)
            after = register_optimizer_step_post_hook(self._after_step)
            stack.callback(after.remove)
            stack.callback(self._give_back)
            yield

    def _attempt(self, optimizer: Optimizer) -> Attempt:
        number = self.trained.number(optimizer)
        self.trained.note_gradients(optimizer)
        self._accumulation.step(optimizer)
        self._steps[number] += 1
        return number, self._steps[number] - 1

    def _around_scale(self, original: Around, scaler: Any, *args: Any, **kw: Any) -> Any:
        self._scaled += bool(scaler.is_enabled())
        return original(scaler, *args, **kw)

    def _around_scaler_step(self, original: Around, scaler: Any, *args: Any, **kw: Any) -> Any:
        if not scaler.is_enabled():
            return original(scaler, *args, **kw)
        optimizer = args[0] if args else kw["optimizer"]
        attempt = self._within_scaler = self._attempt(optimizer)
        try:
            result = original(scaler, *args, **kw)
        finally:
            self._within_scaler = None
        self._attempts.append(attempt)
        scale = math.nan if scaler._scale is None else scaler._scale.clone()
        self._stepped.append((len(self._schedules) - 1, scale))
        self.log.stepped(scaler, optimizer)
        return result

    def _around_update(self, original: Around, scaler: Any, *args: Any, **kw: Any) -> Any:
        result = original(scaler, *args, **kw)
        if scaler.is_enabled():
            self.log.updated(scaler)
            self._accumulation.update()
        return result

    def _around_backward(self, original: Around, *args: Any, **kwargs: Any) -> Any:
        self._accumulation.backward(self.trained.optimizers)
        return original(*args, **kwargs)

    def _around_schedule(self, original: Around, scheduler: Any, *args: Any, **kw: Any) -> Any:
        """A scheduler moves on a withheld step as often as it did where that was skipped."""
        self._schedules[-1] += 1
        if not args and not kw:  # a rate that is set by a number of the step's own may go on
            self._moves.append((len(self._schedules) - 1, self._number_of(scheduler)))
        step, count = len(self._schedules) - 1, self._schedules[-1]
        if self._last_was_withheld and self._replay and not self._replay.may_schedule(step, count):
            return None
        return original(scheduler, *args, **kw)

    def _number_of(self, scheduler: Any) -> int:
        """Its optimizer's, which may stand there in a wrapper of its own."""
        groups = getattr(getattr(scheduler, "optimizer", None), "param_groups", None)
        known = [optimizer.param_groups for optimizer in self.trained.optimizers]
        return next((number for number, each in enumerate(known) if each is groups), -1)

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        attempt = self._within_scaler
        if attempt is None or attempt[0] != self.trained.number(optimizer):
            attempt = self._attempt(optimizer)
        self._last_was_withheld = self._replay is not None and attempt in self._replay.skips
        if self._last_was_withheld:  # an optimizer leaves alone what has no gradient
            given = [param for group in optimizer.param_groups for param in group["params"]]
            self._withheld[optimizer] = [(p, p.grad) for p in given if p.grad is not None]
            for each in given:
                each.grad = None

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        for param, grad in self._withheld.pop(optimizer, ()):
            param.grad = grad

    def _give_back(self) -> None:
        for optimizer in list(self._withheld):
            self._after_step(optimizer)


# What a scaler's state was: its scale, its count of steps since it grew, and its updates so far.
ScalerState = tuple[float, int, int]


class SkipCheck:
    """Whether any step between two looks was skipped, from what scalers keep of it anyway.

    A block of steps is timed without a record of ours, which would slow the amp arm alone. But a
    GradScaler counts the steps since its scale last grew, and each skip puts that back to 0 and
    shrinks the scale: after a known number of updates, only one state means that none was skipped.
    """

    def __init__(self) -> None:
        self._updates: WeakKeyDictionary[GradScaler, int] = WeakKeyDictionary()

    @contextmanager
    def installed(self) -> Iterator[SkipCheck]:
        """Count the updates of every enabled scaler inside."""
        with wrapped(GradScaler, "update", self._around_update):
            yield self

    def look(self) -> Mapping[GradScaler, ScalerState]:
        """The scalers that were updated so far, as they are now. Synchronizes."""
        return {scaler: self._state(scaler) for scaler in list(self._updates)}

    def skipped_since(self, before: Mapping[GradScaler, ScalerState]) -> bool:
        """Whether a step was skipped since then. Synchronizes."""
        return any(
            _was_skipped(scaler, before.get(scaler) or _unused(scaler), now)
            for scaler, now in self.look().items()
        )

    def _around_update(self, original: Around, scaler: Any, *args: Any, **kw: Any) -> Any:
        result = original(scaler, *args, **kw)
        if scaler._enabled:
            self._updates[scaler] = self._updates.get(scaler, 0) + 1
        return result

    def _state(self, scaler: GradScaler) -> ScalerState:
        scale, growth = scaler._scale, scaler._growth_tracker
        if scale is None or growth is None:
            return _unused(scaler)
        return float(scale), int(growth), self._updates[scaler]


def _unused(scaler: GradScaler) -> ScalerState:
    return float(scaler._init_scale), int(scaler._init_growth_tracker), 0


def _was_skipped(scaler: GradScaler, before: ScalerState, now: ScalerState) -> bool:
    scale, growth, updates = before
    found, found_growth, all_updates = now
    times, left = divmod(growth + all_updates - updates, scaler.get_growth_interval())
    grown = scale * scaler.get_growth_factor() ** times
    if grown > torch.finfo(torch.float32).max:  # where a scale no longer grows
        return found_growth != left
    return not found or found_growth != left or not math.isclose(found, grown, rel_tol=1e-3)


def _family(cls: Any) -> Iterable[type]:
    yield cls
    children: list[type] = cls.__subclasses__()
    for child in children:
        yield from _family(child)


@contextmanager
def wrapped(cls: type, method: str, around: Around) -> Iterator[None]:
    """Wrap `method` wherever the class family defines it; only the outermost call is told."""
    depth = 0

    def wrap(original: Around) -> Around:
        @wraps(original)
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            depth += 1
            try:
                if depth > 1:
                    return original(self, *args, **kwargs)
                return around(original, self, *args, **kwargs)
            finally:
                depth -= 1

        return wrapper

    with ExitStack() as stack:
        for each in dict.fromkeys(_family(cls)):
            if method in vars(each):
                original = vars(each)[method]
                stack.callback(setattr, each, method, original)
                setattr(each, method, wrap(original))
        yield
