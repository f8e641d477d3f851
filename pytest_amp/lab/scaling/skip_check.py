"""Check whether a timed block had steps that a GradScaler skipped, since these have no speed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch.amp import GradScaler

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.events import subscribed

__tracebackhide__ = unless_our_bug


class ScalerState(NamedTuple):
    """What a scaler keeps anyway.

    Attributes:
        scale: the loss scale.
        growth: the steps since the scale last grew.
        updates: how many updates there were; None if nothing counts them.
    """

    scale: float
    growth: int
    updates: int | None


class SkipCheck:
    """Tells whether a step between two looks was skipped, from what scalers keep of it anyway.

    A timed block must contain nothing of ours, which would slow only the amp arm. But a GradScaler
    counts the steps since its scale last grew, and each skip resets that count and shrinks the
    scale. And torch counts the in-place changes of the scale, one for each update, as the version
    of its tensor. After a given number of updates, only one state means that none was skipped.
    """

    def __init__(self) -> None:
        # For each scaler, whether its scale's version counts its updates. In a subclass it may not.
        self._scalers: WeakKeyDictionary[GradScaler, bool] = WeakKeyDictionary()

    @contextmanager
    def watching(self) -> Iterator[SkipCheck]:
        """Find the enabled scalers that are used inside."""
        with subscribed(scale=self._around_scale, update=self._around_update):
            yield self

    def look(self) -> Mapping[GradScaler, ScalerState]:
        """Return the present states of the scalers that were found so far. Synchronizes."""
        return {scaler: self._state(scaler) for scaler in list(self._scalers)}

    def skipped_since(self, before: Mapping[GradScaler, ScalerState]) -> bool:
        """Return whether a step was skipped since `before`. Synchronizes."""
        return any(
            _was_skipped(scaler, before.get(scaler) or _unused(scaler), now)
            for scaler, now in self.look().items()
        )

    def _around_scale(self, original: Any, scaler: Any, *args: Any, **kw: Any) -> Any:
        if scaler._enabled:
            self._scalers.setdefault(scaler, True)
        return original(scaler, *args, **kw)

    def _around_update(self, original: Any, scaler: Any, *args: Any, **kw: Any) -> Any:
        if not scaler._enabled:
            return original(scaler, *args, **kw)
        before = _version(scaler)
        result = original(scaler, *args, **kw)
        counted = _version(scaler) == before + 1
        self._scalers[scaler] = self._scalers.get(scaler, True) and counted
        return result

    def _state(self, scaler: GradScaler) -> ScalerState:
        scale, growth = scaler._scale, scaler._growth_tracker
        if scale is None or growth is None:
            return _unused(scaler)
        updates = _version(scaler) if self._scalers[scaler] else None
        return ScalerState(float(scale), int(growth), updates)


def _version(scaler: GradScaler) -> int:
    return 0 if scaler._scale is None else scaler._scale._version


def _unused(scaler: GradScaler) -> ScalerState:
    return ScalerState(float(scaler._init_scale), int(scaler._init_growth_tracker), 0)


def _was_skipped(scaler: GradScaler, before: ScalerState, now: ScalerState) -> bool:
    if not now.scale:  # it shrank to 0
        return True
    interval, factor = scaler.get_growth_interval(), math.log(scaler.get_growth_factor())
    grown = math.log(now.scale / before.scale)
    if before.updates is None or now.updates is None:
        times = round(grown / factor)
        updates = times * interval + now.growth - before.growth
    else:
        updates = now.updates - before.updates
        times = (before.growth + updates) // interval
    if times < 0 or updates < 0 or now.growth != before.growth + updates - times * interval:
        return True
    if math.log(before.scale) + times * factor > math.log(torch.finfo(torch.float32).max):
        return False  # it no longer grows
    return not math.isclose(grown, times * factor, abs_tol=1e-3)
