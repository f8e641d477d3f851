"""The globals and random number generators: read, swapped at each change of arm, and put back."""

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
    """Seed python, numpy and torch on all devices."""
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def _host_remembered() -> Callable[[], None]:
    """A function that puts the generators of python, numpy and torch's CPU back as they are now."""
    drawn, numpys, torchs = random.getstate(), numpy.random.get_state(), torch.get_rng_state()

    def put_back() -> None:
        random.setstate(drawn)
        numpy.random.set_state(numpys)
        torch.set_rng_state(torchs)

    return put_back


def remembered() -> Callable[[], None]:
    """A function that puts the random number generators back to what they are now."""
    put_backs = [_host_remembered(), *map(_device_remembered, ("cuda", "xpu"))]

    def put_back() -> None:
        for each in put_backs:
            each()

    return put_back


def _device_remembered(kind: str) -> Callable[[], None]:
    """The same for the generators of one kind of accelerator.

    Of a kind that nobody has used yet, torch keeps the seed that was asked for last, and seeds with
    it once the kind is used. To ask for its generators' states would be such a use.
    """
    module: Any = getattr(torch, kind)
    if module.is_initialized():
        states = module.get_rng_state_all()
        return lambda: module.set_rng_state_all(states)
    waiting: Any = module._lazy_seed_tracker
    asked_for = dict(vars(waiting))

    def put_back() -> None:
        vars(waiting).update(asked_for)
        if module.is_initialized():  # by what ran in between
            module.manual_seed_all(torch.Generator().initial_seed())
            for call in filter(None, asked_for["call_order"]):
                call[0]()

    return put_back


class GlobalState:
    """The globals and the random number generators, for one device."""

    def __init__(self, device: Device) -> None:
        device.initialize()
        self._device = device
        self._globals = table()

    def capture(self) -> Snapshot:
        """All values as they are now."""
        with quietly():
            state = {each.name: _read(each) for each in self._globals}
        state["rng.host"] = _host_remembered()
        state["rng.device"] = self._device.rng_state()
        return state

    def apply(self, state: Snapshot) -> None:
        """Put all values back to what `capture` saw."""
        with quietly():
            for each in self._globals:
                wanted = state[each.name]
                if wanted is not _UNREADABLE and _read(each) != wanted:
                    each.write(wanted)
        state["rng.host"]()
        self._device.set_rng_state(state["rng.device"])

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """Whatever happens inside, afterwards everything is as it was."""
        before = self.capture()
        try:
            yield
        finally:
            self.apply(before)

    def flags(self) -> dict[str, Any]:
        """The switches that shift what a baseline means, as plain values for the report."""
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
    """Warnings of what is our own doing, not the user's, are not told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
