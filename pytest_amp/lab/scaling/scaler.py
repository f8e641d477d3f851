"""The GradScaler that we hand out, which keeps a record, and the log for that record.

The tensors in which torch keeps ``found_inf`` tell whether a scaler skipped a step. They are copied
at once and read only on request, because reading one synchronizes the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.tape import Tape

__tracebackhide__ = unless_our_bug


class ScalerLog:
    """What scalers did, in order; the record stays on the device until it is read."""

    def __init__(self) -> None:
        self._tape = Tape()
        self._found: list[list[torch.Tensor]] = []
        self._scales: list[torch.Tensor] = []

    def stepped(self, scaler: torch.amp.GradScaler, optimizer: Any) -> None:
        """Record one ``scaler.step(optimizer)``."""
        found = scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values()
        # Copies, because update() adds the values of all optimizers into the first one's.
        self._found.append(list(map(self._tape.keep, found)))

    def updated(self, scaler: torch.amp.GradScaler) -> None:
        """Record the scale after one ``scaler.update()``."""
        scale = self.scale_of(scaler)
        if scale is not None:
            self._scales.append(scale)

    def scale_of(self, scaler: torch.amp.GradScaler) -> torch.Tensor | None:
        """Return a copy of the scaler's scale; None if it has not scaled anything yet."""
        return None if scaler._scale is None else self._tape.keep(scaler._scale)

    @property
    def attempts(self) -> int:
        """How many steps were recorded, skipped ones included."""
        return len(self._found)

    @property
    def scales(self) -> tuple[float, ...]:
        """The scale after each update."""
        return tuple(float(scale) for scale in self._scales)

    def skipped(self, since: int = 0) -> tuple[bool, ...]:
        """Return whether each step from attempt `since` on was skipped; this synchronizes."""
        return tuple(any(bool(tensor) for tensor in found) for found in self._found[since:])

    @property
    def stalled(self) -> bool:
        """Whether every step of the last quarter was skipped, so that training stands still."""
        tail = max(1, self.attempts // 4)
        return bool(self._found) and all(self.skipped(self.attempts - tail))


class AmpScaler(torch.amp.GradScaler):
    """A `torch.amp.GradScaler` that records scales and skipped steps, and can overflow on demand.

    It takes the arguments of `torch.amp.GradScaler`.
    """

    def __init__(self, device: str = "cuda", *args: Any, **kwargs: Any) -> None:
        super().__init__(device, *args, **kwargs)
        self._log = ScalerLog()
        self._overflow = False
        self.recording = True

    @property
    def scales(self) -> tuple[float, ...]:
        """The loss scale after each ``update()``."""
        return self._log.scales

    @property
    def skipped_steps(self) -> int:
        """How many ``step()`` calls were skipped because of inf or NaN gradients."""
        return sum(self._log.skipped())

    def overflow_next(self) -> None:
        """Make the next scaled loss infinite, so that the step that follows is skipped.

        Raises:
            RuntimeError: the scaler is disabled; it scales nothing and skips nothing.
        """
        if not self.is_enabled():
            raise RuntimeError(
                "overflow_next() on a disabled GradScaler: it scales nothing and skips nothing"
            )
        self._overflow = True

    def scale(self, outputs: Any) -> Any:
        """Scale as torch does, and make the result infinite if `overflow_next` was called."""
        scaled = super().scale(outputs)
        if not self._overflow:
            return scaled
        self._overflow = False
        return infinite(scaled)

    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> float | None:
        """Step as torch does, and record whether the step was skipped."""
        result = super().step(optimizer, *args, **kwargs)
        if self.recording and self.is_enabled():
            self._log.stepped(self, optimizer)
        return result

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        """Update the scale as torch does, and record it."""
        super().update(new_scale)
        if self.recording and self.is_enabled():
            self._log.updated(self)


class FixtureScaler(AmpScaler):
    """The `amp_scaler` fixture: a scaler of its own, which acts as an arm's scaler in that arm.

    While it stands for another scaler, all attributes and methods are the other's, private ones
    included. Code that watches GradScalers then sees only the arm's scaler, whichever of the two
    the step calls.
    """

    _stands_for: torch.amp.GradScaler | None = None

    @contextmanager
    def standing_for(self, scaler: torch.amp.GradScaler) -> Iterator[None]:
        """Act as `scaler` inside."""
        outer = self._stands_for
        object.__setattr__(self, "_stands_for", scaler)
        try:
            yield
        finally:
            object.__setattr__(self, "_stands_for", outer)

    def __getattribute__(self, name: str) -> Any:
        own: Any = super().__getattribute__
        other = None if name in _OWN else own("_stands_for")
        return own(name) if other is None else getattr(other, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._stands_for is None:
            super().__setattr__(name, value)
        else:
            setattr(self._stands_for, name, value)


# The attributes that a scaler keeps for itself while it stands for another.
_OWN = frozenset(("_stands_for", "standing_for", "__class__"))


def set_scale(scaler: Any, scale: float) -> None:
    """Give a GradScaler a loss scale, whether it has begun to scale or not."""
    scaler._init_scale = scale
    if scaler._scale is not None:
        with torch.no_grad():
            scaler._scale.fill_(scale)


def infinite(scaled: Any) -> Any:
    """Return a scaled loss times infinity; if there are several, only the first is multiplied."""
    if isinstance(scaled, torch.Tensor):
        return scaled * float("inf")
    first, *rest = scaled
    kind = type(scaled) if isinstance(scaled, (list, tuple)) else list
    return kind([infinite(first), *rest])


def raised_by_scaler(error: BaseException) -> bool:
    """Return whether the exception was raised in torch's own GradScaler."""
    innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    name = innermost.tb_frame.f_globals.get("__name__", "") if innermost else ""
    return str(name).startswith("torch.") and str(name).endswith("grad_scaler")
