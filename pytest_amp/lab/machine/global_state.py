"""Read, swap and restore the globals and the random number generators."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy
import torch

from pytest_amp.lab.machine.device import Device
from pytest_amp.lab.machine.torch_globals import Global, table

_UNREADABLE = object()

Snapshot = Mapping[str, Any]


def seed_all(seed: int) -> None:
    """Seed Python, numpy and torch on all devices."""
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def _host_remembered() -> Callable[[], None]:
    """Return a function that restores the generators of Python, numpy and torch's CPU."""
    drawn, numpys, torchs = random.getstate(), numpy.random.get_state(), torch.get_rng_state()

    def put_back() -> None:
        random.setstate(drawn)
        numpy.random.set_state(numpys)
        torch.set_rng_state(torchs)

    return put_back


def remembered() -> Callable[[], None]:
    """Return a function that restores all random number generators to their present state."""
    put_backs = [_host_remembered(), *map(_device_remembered, ("cuda", "xpu"))]

    def put_back() -> None:
        for each in put_backs:
            each()

    return put_back


def _device_remembered(kind: str) -> Callable[[], None]:
    """Return a function that restores the generators of one type of accelerator.

    If the type has not been used yet, torch keeps the last seed that was asked for, and applies it
    at the first use. Reading the generators' states would be such a use, so the seed is kept
    instead.
    """
    module: Any = getattr(torch, kind)
    if module.is_initialized():
        states = module.get_rng_state_all()
        return lambda: module.set_rng_state_all(states)
    waiting: Any = module._lazy_seed_tracker
    asked_for = dict(vars(waiting))

    def put_back() -> None:
        vars(waiting).update(asked_for)
        if module.is_initialized():  # something that ran in between has used it
            module.manual_seed_all(torch.Generator().initial_seed())
            for call in filter(None, asked_for["call_order"]):
                call[0]()

    return put_back


class GlobalState:
    """The globals and the random number generators, as they concern one device."""

    def __init__(self, device: Device) -> None:
        device.initialize()
        self._device = device
        self._globals = table()

    def capture(self) -> Snapshot:
        """Return all values as they are now."""
        with quietly():
            state = {each.name: _read(each) for each in self._globals}
        state["rng.host"] = _host_remembered()
        state["rng.device"] = self._device.rng_state()
        return state

    def swap(self, state: Snapshot) -> Snapshot:
        """Put in force what `capture` returned, and return what was in force until now.

        Timed blocks do so twice each, and mostly nothing differs.
        """
        before = self.capture()
        if any(before[each.name] != state[each.name] for each in self._globals):
            self._write(state)
        self._draw_on(state)
        return before

    def apply(self, state: Snapshot) -> None:
        """Restore all values that `capture` returned."""
        self._write(state)
        self._draw_on(state)

    def _write(self, state: Snapshot) -> None:
        """Write the globals that differ; writing one may change another."""
        with quietly():
            for each in self._globals:
                wanted = state[each.name]
                if wanted is not _UNREADABLE and _read(each) != wanted:
                    each.write(wanted)

    def _draw_on(self, state: Snapshot) -> None:
        """Set the random number generators."""
        state["rng.host"]()
        self._device.set_rng_state(state["rng.device"])

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """Restore all values at the end, whatever happens inside."""
        before = self.capture()
        try:
            yield
        finally:
            self.apply(before)

    def flags(self) -> dict[str, Any]:
        """Return the switches that shift what a baseline means, as plain values for the report."""
        with quietly():
            state = {each.name: _read(each) for each in self._globals}
        shown = {
            name: value
            for name, value in state.items()
            if ("precision" in name or "tf32" in name or name.startswith("cudnn."))
            and value is not _UNREADABLE
        }
        shown["deterministic_algorithms"] = state["deterministic_algorithms"][0]
        shown["num_threads"] = state["num_threads"]
        return shown


def _read(each: Global) -> Any:
    try:
        return each.read()
    except (RuntimeError, AssertionError):
        return _UNREADABLE


@contextmanager
def quietly() -> Iterator[None]:
    """Suppress warnings about what this package does itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
