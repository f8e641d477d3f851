"""The audited GradScaler that we hand out, and the log that is kept of it and of any other.

A step that a scaler skipped is told from the tensors in which torch keeps ``found_inf``. They are
only held on to, and read when somebody asks: reading one at once would synchronize the device.
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
    """What scalers did, in order, as tensors on the device until they are read."""

    def __init__(self) -> None:
        self._tape = Tape()
        self._found: list[list[torch.Tensor]] = []
        self._scales: list[torch.Tensor] = []

    def stepped(self, scaler: torch.amp.GradScaler, optimizer: Any) -> None:
        """Note one ``scaler.step(optimizer)``."""
        found = scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values()
        # Copies, because update() adds those of all optimizers into the first one's.
        self._found.append(list(map(self._tape.keep, found)))

    def updated(self, scaler: torch.amp.GradScaler) -> None:
        """Note the scale after one ``scaler.update()``."""
        scale = self.scale_of(scaler)
        if scale is not None:
            self._scales.append(scale)

    def scale_of(self, scaler: torch.amp.GradScaler) -> torch.Tensor | None:
        """A copy of its scale; None where it has not begun to scale."""
        return None if scaler._scale is None else self._tape.keep(scaler._scale)

    @property
    def attempts(self) -> int:
        """How many steps were noted."""
        return len(self._found)

    @property
    def scales(self) -> tuple[float, ...]:
        """The scale after each update."""
        return tuple(float(scale) for scale in self._scales)

    def skipped(self, since: int = 0) -> tuple[bool, ...]:
        """Whether each step from the attempt `since` on was skipped. Synchronizes."""
        return tuple(any(bool(tensor) for tensor in found) for found in self._found[since:])

    @property
    def stalled(self) -> bool:
        """Whether every step of the last quarter was skipped: the training stands still."""
        tail = max(1, self.attempts // 4)
        return bool(self._found) and all(self.skipped(self.attempts - tail))


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
        return sum(self._log.skipped())

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
        return infinite(scaled)

    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> float | None:
        result = super().step(optimizer, *args, **kwargs)
        if self.recording and self.is_enabled():
            self._log.stepped(self, optimizer)
        return result

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        super().update(new_scale)
        if self.recording and self.is_enabled():
            self._log.updated(self)


class FixtureScaler(AmpScaler):
    """The `amp_scaler` fixture: a scaler of its own, and within an arm that arm's scaler.

    While it stands for another, every attribute and method is the other's, private ones too: what
    watches GradScalers then sees one scaler, the arm's, whichever of the two the step calls.
    """

    _stands_for: torch.amp.GradScaler | None = None

    @contextmanager
    def standing_for(self, scaler: torch.amp.GradScaler) -> Iterator[None]:
        """Be `scaler` inside."""
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


# What a scaler that stands for another does not ask of that one.
_OWN = frozenset(("_stands_for", "standing_for", "__class__"))


def infinite(scaled: Any) -> Any:
    """A scaled loss times infinity; of several losses, the first."""
    if isinstance(scaled, torch.Tensor):
        return scaled * float("inf")
    first, *rest = scaled
    kind = type(scaled) if isinstance(scaled, (list, tuple)) else list
    return kind([infinite(first), *rest])


def raised_by_scaler(error: BaseException) -> bool:
    """Whether a GradScaler of torch's own raised it."""
    innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    name = innermost.tb_frame.f_globals.get("__name__", "") if innermost else ""
    return str(name).startswith("torch.") and str(name).endswith("grad_scaler")
