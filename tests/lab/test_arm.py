"""What setup receives, and what stays in memory while the next arm is built."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pytest_amp import AmpError
from pytest_amp.lab.arm import Arm
from pytest_amp.lab.machine.device import Device
from pytest_amp.recipes import Recipe
from tests.helpers.lab import CPU, active, measure, train, workbench


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


def test_a_suggestion_is_the_first_value_where_nothing_is_tuned() -> None:
    with active(workbench(lambda _: lambda: 1.0), "amp") as resident:
        assert resident.arm.suggest("batch_size", (16, 32)) == 16
        assert resident.arm.suggest("optimizer", ["adam"]) == "adam"
        for nothing in ((), "16", 16):
            with pytest.raises(AmpError, match="takes a sequence of one or more values"):
                resident.arm.suggest("batch_size", nothing)


def test_the_loss_scale_of_the_settings_is_the_scaler_s() -> None:
    seen = []

    def setup(arm):
        if arm.scaler.is_enabled():
            seen.append((arm.scaler.get_scale(), arm.scaler.get_growth_interval()))
        return lambda: 1.0

    measure(setup, dtype="float16", init_scale=1024, growth_interval=7)
    assert set(seen) == {(1024.0, 7)}
    seen.clear()
    measure(setup, dtype="float16")
    scaler = torch.amp.GradScaler("cpu")
    assert set(seen) == {(scaler.get_scale(), scaler.get_growth_interval())}  # torch's own
