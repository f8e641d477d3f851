"""GradScaler: the audited one that we hand out, and the watch on any that the user makes.

A step that a scaler skipped is told from the tensors in which torch keeps ``found_inf``. They are
only held on to, and read when somebody asks: reading one at once would synchronize the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pytest_amp.errors import none_of_ours

__tracebackhide__ = none_of_ours


class ScalerLog:
    """What scalers did, in order, as tensors on the device until they are read."""

    def __init__(self) -> None:
        self._attempts: list[tuple[int, list[torch.Tensor]]] = []
        self._scales: list[torch.Tensor] = []

    def stepped(self, scaler: torch.amp.GradScaler, optimizer: Any) -> None:
        """Note one ``scaler.step(optimizer)``."""
        found = scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values()
        # Cloned, because update() adds those of all optimizers into the first one's.
        self._attempts.append((id(optimizer), [tensor.clone() for tensor in found]))

    def updated(self, scaler: torch.amp.GradScaler) -> None:
        """Note the scale after one ``scaler.update()``."""
        scale = scaler._scale
        if scale is not None:
            self._scales.append(scale.detach().clone())

    @property
    def scales(self) -> tuple[float, ...]:
        """The scale after each update."""
        return tuple(float(scale) for scale in self._scales)

    @property
    def skipped(self) -> tuple[tuple[int, int], ...]:
        """Per skipped step the optimizer's id and which of its steps it was, from 0."""
        counts: dict[int, int] = {}
        skipped = []
        for optimizer, found in self._attempts:
            ordinal = counts.get(optimizer, 0)
            counts[optimizer] = ordinal + 1
            if any(bool(tensor) for tensor in found):
                skipped.append((optimizer, ordinal))
        return tuple(skipped)

    def skipped_since(self, mark: int) -> bool:
        """Whether any step since the first `mark` attempts was skipped. Synchronizes."""
        return any(bool(t) for _, found in self._attempts[mark:] for t in found)

    @property
    def stalled(self) -> bool:
        """Whether every step of the last quarter was skipped: the training stands still."""
        tail = self._attempts[-max(1, len(self._attempts) // 4) :]
        return bool(tail) and all(any(bool(t) for t in found) for _, found in tail)

    @property
    def attempts(self) -> int:
        return len(self._attempts)


class AmpScaler(torch.amp.GradScaler):
    """A `torch.amp.GradScaler` that keeps a record, and can be made to overflow once."""

    def __init__(self, device: str = "cuda", *args: Any, **kwargs: Any) -> None:
        super().__init__(device, *args, **kwargs)
        self._log = ScalerLog()
        self._overflow = False
        self.recording = True

    @property
    def scales(self) -> tuple[float, ...]:
        """The loss scale after each ``update()``: the trajectory."""
        return self._log.scales

    @property
    def skipped_steps(self) -> int:
        """How many ``step()`` calls were skipped because of inf or NaN gradients."""
        return len(self._log.skipped)

    def overflow_next(self) -> None:
        """Make the next scaled loss infinite, so that the step after it is skipped.

        Raises RuntimeError on a disabled scaler, which scales nothing and skips nothing.
        """
        if not self.is_enabled():
            raise RuntimeError(
                "overflow_next() on a disabled GradScaler: it scales nothing and skips nothing"
            )
        self._overflow = True

    def scale(self, outputs: Any) -> Any:
        scaled = super().scale(outputs)
        if not self._overflow:
            return scaled
        self._overflow = False
        if isinstance(scaled, torch.Tensor):
            return scaled * float("inf")
        first, *rest = scaled
        return type(scaled)([first * float("inf"), *rest])

    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> float | None:
        result = super().step(optimizer, *args, **kwargs)
        if self.recording and self.is_enabled():
            self._log.stepped(self, optimizer)
        return result

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        super().update(new_scale)
        if self.recording and self.is_enabled():
            self._log.updated(self)


class StepWatch:
    """Notes what scalers and schedulers do in a run, and can repeat the skips of another run."""

    def __init__(self, replay: Replay | None = None) -> None:
        self.log = ScalerLog()
        self.schedules: list[int] = [0]
        self._replay = replay

    def next_step(self) -> None:
        """Between two steps of the experiment."""
        self.schedules.append(0)

    @contextmanager
    def installed(self, optimizers: list[Optimizer]) -> Iterator[None]:
        """Watch every GradScaler and LRScheduler, whoever made it."""
        with (
            _wrapped(torch.amp.GradScaler, "step", self._around_step),
            _wrapped(torch.amp.GradScaler, "update", self._around_update),
            _wrapped(LRScheduler, "step", self._around_schedule),
        ):
            undo = self._replay.suppress(optimizers) if self._replay else []
            try:
                yield
            finally:
                for each in undo:
                    each()

    def _around_step(self, original: Callable[..., Any], scaler: Any, *args: Any, **kw: Any) -> Any:
        result = original(scaler, *args, **kw)
        if scaler.is_enabled():
            self.log.stepped(scaler, args[0] if args else kw["optimizer"])
        return result

    def _around_update(
        self, original: Callable[..., Any], scaler: Any, *args: Any, **kw: Any
    ) -> Any:
        result = original(scaler, *args, **kw)
        if scaler.is_enabled():
            self.log.updated(scaler)
        return result

    def _around_schedule(
        self, original: Callable[..., Any], scheduler: Any, *args: Any, **kw: Any
    ) -> Any:
        self.schedules[-1] += 1
        step = len(self.schedules) - 1
        if self._replay and not self._replay.may_schedule(step, self.schedules[-1]):
            return None
        return original(scheduler, *args, **kw)

    def replay(self, optimizers: list[Optimizer]) -> Replay | None:
        """What another arm has to suppress to apply the same steps; None where nothing is."""
        ordinals = {id(optimizer): index for index, optimizer in enumerate(optimizers)}
        skips = frozenset(
            (ordinals[optimizer], step)
            for optimizer, step in self.log.skipped
            if optimizer in ordinals
        )
        return Replay(skips, tuple(self.schedules)) if skips else None


class Replay:
    """The steps that one arm's scaler skipped, to be suppressed in the other arm.

    `skips`: (optimizer's number, its step's number). `schedules`: scheduler steps per step.
    """

    def __init__(self, skips: frozenset[tuple[int, int]], schedules: tuple[int, ...]) -> None:
        self._skips = skips
        self._schedules = schedules
        self._suppressed = False

    def may_schedule(self, step: int, count: int) -> bool:
        """In a step whose update was suppressed, a scheduler moves as often as it did there."""
        return (
            not self._suppressed or step >= len(self._schedules) or (count <= self._schedules[step])
        )

    def suppress(self, optimizers: list[Optimizer]) -> list[Callable[[], None]]:
        """Make the optimizers leave out the skipped steps; returns what undoes it."""
        return [
            self._guard(number, optimizer)
            for number, optimizer in enumerate(optimizers)
            if any(number == skipped for skipped, _ in self._skips)
        ]

    def _guard(self, number: int, optimizer: Any) -> Callable[[], None]:
        original = optimizer.step
        own = vars(optimizer).get("step")
        calls = 0

        @wraps(original)
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            skip = (number, calls) in self._skips
            calls += 1
            self._suppressed = skip
            if not skip:
                return original(*args, **kwargs)
            optimizer._opt_called = True  # else the scheduler warns of a wrong order
            return None

        optimizer.step = step

        def undo() -> None:
            if own is None:
                del optimizer.step
            else:
                optimizer.step = own

        return undo


def _family(cls: Any) -> Iterable[type]:
    yield cls
    children: list[type] = cls.__subclasses__()
    for child in children:
        yield from _family(child)


@contextmanager
def _wrapped(cls: type, method: str, around: Callable[..., Any]) -> Iterator[None]:
    """Wrap `method` wherever the class family defines it; only the outermost call is told."""
    depth = 0
    replaced: list[tuple[type, Any]] = []

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
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

    for each in dict.fromkeys(_family(cls)):
        if method in vars(each):
            replaced.append((each, vars(each)[method]))
            setattr(each, method, wrap(vars(each)[method]))
    try:
        yield
    finally:
        for each, original in replaced:
            setattr(each, method, original)
