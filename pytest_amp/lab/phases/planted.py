"""Make the steps of an arm slower by a known amount of real work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.arm import Arm, Setup, Step
from pytest_amp.lab.machine.device import Device

__tracebackhide__ = unless_our_bug

_ELEMENTS = 4096
_CALLS, _ROUNDS = 500, 5


def slower_by(seconds: float) -> Callable[[Setup], Setup]:
    """Return a change to a setup, with which each step multiplies small tensors for so long."""

    def changed(setup: Setup) -> Setup:
        def set_up(arm: Arm) -> Step:
            step: Step = setup(arm)
            work = _work_on(arm.device)
            calls = round(seconds / _seconds_of(work, Device(torch.device(arm.device))))

            def slower() -> Any:
                loss = step()
                for _ in range(calls):
                    work()
                return loss

            return slower

        return set_up

    return changed


def _work_on(device: torch.device) -> Callable[[], object]:
    values = torch.ones(_ELEMENTS, device=device)
    return lambda: torch.mul(values, 1.0, out=values)


def _seconds_of(work: Callable[[], object], device: Device) -> float:
    """Return the seconds of one call, those of the fastest of a few rounds."""
    fastest = float("inf")
    for _ in range(_ROUNDS):
        device.synchronize()
        began = device.now()
        for _ in range(_CALLS):
            work()
        device.synchronize()
        fastest = min(fastest, (device.now() - began) / _CALLS)
    return max(fastest, 1e-9)
