"""What an experiment leaves in reference cycles is gone when it ends, and is not set aside."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pytest_amp.lab.arm import Arm
from pytest_amp.lab.machine.device import Device
from pytest_amp.lab.machine.garbage import older_objects_set_aside
from pytest_amp.lab.phases import drill
from tests.helpers.lab import CPU, measure, train


@pytest.fixture(autouse=True)
def _nothing_set_aside() -> Iterator[None]:
    """The package's own fixture has set all aside already."""
    gc.unfreeze()
    yield
    gc.freeze()


class Cycle:
    def __init__(self) -> None:
        self.own = self


def test_a_cycle_that_was_made_inside_is_gone_behind_it() -> None:
    with older_objects_set_aside(Device(CPU)):
        made = weakref.ref(Cycle())
    assert made() is None


def test_a_cycle_from_before_is_nobody_s_business() -> None:
    older = weakref.ref(Cycle())
    gc.disable()
    try:
        with older_objects_set_aside(Device(CPU)):
            pass
        assert older() is not None
    finally:
        gc.enable()


def test_drills_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[drill.DrilledArm]] = []
    original = drill.DrilledArm.__init__

    def noted(self: drill.DrilledArm, *args: Any) -> None:
        original(self, *args)
        made.append(weakref.ref(self))

    def setup(arm: Arm) -> Callable[[], Any]:
        model = torch.nn.Linear(8, 4)
        optimizer = torch.optim.AdamW(model.parameters())
        x, y = torch.randn(4, 8), torch.arange(4)
        return train(arm, optimizer, lambda: F.cross_entropy(model(x), y))  # type: ignore[no-any-return]

    monkeypatch.setattr(drill.DrilledArm, "__init__", noted)
    gc.disable()  # what is gone, is gone without its help
    try:
        measure(setup, dtype="float16")
    finally:
        gc.enable()
    assert made
    assert [run for run in made if run() is not None] == []
