"""What setup receives, and what stays in memory while the next arm is built."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pytest_amp.lab.arm import Arm
from pytest_amp.lab.machine.device import Device
from pytest_amp.recipes import Recipe
from tests.helpers.lab import CPU, measure, train


def test_the_cast_cache_can_be_left_off() -> None:
    arm = Arm("amp", Device(CPU), Recipe.parse("bf16"))
    for enabled in (None, True, False):
        with arm.autocast(cache_enabled=enabled):
            assert torch.is_autocast_cache_enabled() is (enabled is not False)
    with arm.autocast():
        assert torch.is_autocast_cache_enabled()


def test_without_amp_there_is_no_cache_to_speak_of() -> None:
    with Arm("fp32", Device(CPU), Recipe()).autocast(cache_enabled=False):
        assert not torch.is_autocast_enabled("cpu")


def plainly(_: nn.Module) -> None: ...


def in_a_cycle(model: nn.Module) -> None:
    model.itself = [model]


def of_a_trainer(model: nn.Module) -> None:
    class Trainer:
        def __init__(self) -> None:
            self.model = model

    object.__setattr__(model, "trainer", Trainer())


@pytest.mark.parametrize("hold", [plainly, in_a_cycle, of_a_trainer])
@pytest.mark.parametrize("static", [True, False])
def test_an_arm_is_gone_before_the_next_is_built(
    hold: Callable[[nn.Module], None], static: bool
) -> None:
    """But for the two that are timed side by side, which here do not fit together."""
    weights: list[weakref.ref[torch.Tensor]] = []
    refused = 0

    def setup(arm: Arm) -> Callable[[], Any]:
        nonlocal refused
        if any(weight() is not None for weight in weights):
            refused += 1
            raise torch.OutOfMemoryError("out of memory")
        model = nn.Linear(8, 8)
        weights.append(weakref.ref(model.weight))
        hold(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1000)
        x = torch.ones(4, 8)
        inner = train(arm, optimizer, lambda: model(x).float().square().mean())

        def step() -> Any:
            loss = inner()
            if not arm.scaler.is_enabled():
                scheduler.step()
            return loss

        return step

    report = measure(setup, static=static, steps=3, dtype="float16", max_time=0.5)
    assert report.verdict == "pass"
    assert refused == (0 if static else 1)
    assert [note for note in report.notes if "ended early" in note] == []
    assert any("did not fit" in note for note in report.notes) is not static
