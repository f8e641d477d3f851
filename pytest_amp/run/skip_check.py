"""Whether a timed block had steps that a GradScaler skipped, which are no speed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.amp import GradScaler

from pytest_amp.errors import none_of_ours
from pytest_amp.run.patches import wrapped

__tracebackhide__ = none_of_ours

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

    def _around_update(self, original: Any, scaler: Any, *args: Any, **kw: Any) -> Any:
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
