"""What is told of a real training, which must not notice."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_amp.lab.telemetry import LARGEST, Meter, underflow_of

TINY = 2.0**-20
"""Subnormal in float16, and a normal number in bfloat16."""


@pytest.mark.parametrize(
    ("gradient", "expected"),
    [
        ([[1.0, TINY], [1.0, 1.0]], (1, 4)),
        ([[1.0, 0.0], [1.0, 1.0]], (1, 4)),
        ([[1.0, -TINY], [0.0, 0.0]], (1, 2)),  # a token that did not occur
        ([[1.0, 0.0], [TINY, 0.0]], (1, 2)),  # an input that is always zero
        ([[0.0, 0.0], [0.0, 0.0]], (4, 4)),
        ([1.0, 0.0, TINY], (1, 2)),  # a unit that is dead
        (TINY, (1, 1)),
        ([[math.nan, 1.0], [math.inf, 1.0]], (0, 4)),
    ],
)
def test_what_underflows_is_too_small_for_the_dtype(gradient, expected) -> None:
    assert tuple(underflow_of(torch.tensor(gradient), torch.float16).tolist()) == expected


def test_bfloat16_loses_little_that_float32_would_keep() -> None:
    gradient = torch.tensor([[1.0, TINY], [2.0**-130, 1.0]])
    assert underflow_of(gradient, torch.bfloat16).tolist() == [1, 4]


def test_of_a_large_gradient_some_rows_are_looked_at() -> None:
    gradient = torch.ones(2 * LARGEST // 64 + 5, 64)
    gradient[::2] = TINY
    lost, counted = underflow_of(gradient, torch.float16).tolist()
    assert counted <= LARGEST
    assert 0.3 < lost / counted < 0.7


class Classifier(nn.Module):
    def __init__(self, forward=lambda net, inputs: net(inputs)) -> None:
        super().__init__()
        self.embedding, self.how = nn.Embedding(4, 8), forward
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, tokens):
        return self.how(self.net, self.embedding(tokens))


def train(model, meter, dtype=None, scaler=None, steps=3, factor=1.0, backward_of=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    meter.begin(scaler)
    losses = []
    for step in range(steps):
        meter.look()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = model(torch.arange(4)).square().mean() * factor
        scaler.scale(backward_of(loss, step) if backward_of else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        meter.stepped(scaler)
        meter.end_of_step()
        losses.append(loss.item())
    return losses


def figures(model, dtype=None, asked=None, **more):
    meter = Meter(model, asked)
    train(model, meter, dtype, **more)
    found = meter.figures()
    return found["amp/enabled"], found["amp/precision"]


def without_autocast(net, inputs):
    with torch.autocast("cpu", enabled=False):
        return net(inputs.float())


@pytest.mark.parametrize(
    ("model", "dtype", "expected"),
    [
        (Classifier(), None, (0, 32)),
        (Classifier(), torch.bfloat16, (1, 16)),
        (Classifier(), torch.float16, (1, 16)),
        (Classifier(without_autocast), torch.bfloat16, (0, 32)),
        (Classifier().bfloat16(), None, (0, 16)),
        (Classifier().double(), None, (0, 64)),
    ],
)
def test_precision_is_that_of_the_products_whatever_was_asked_for(model, dtype, expected) -> None:
    for asked in (None, torch.float16):
        assert figures(model, dtype, asked) == expected


def test_until_a_step_was_looked_at_it_is_what_was_asked_for() -> None:
    assert Meter(Classifier(), torch.float16).figures() == {
        "amp/enabled": 1, "amp/precision": 16, "amp/loss_scale": 1, "amp/skipped_steps": 0,
    }  # fmt: skip
    assert Meter(Classifier().half(), None).figures()["amp/precision"] == 16


def test_an_evaluation_is_no_step() -> None:
    model = Classifier()
    meter = Meter(model, torch.float16)
    meter.look()
    with torch.no_grad():
        model(torch.arange(4))
    meter.end_of_step()
    assert meter.figures()["amp/enabled"] == 1


def test_a_compiled_model_is_taken_at_its_word_and_not_compiled_again() -> None:
    model = torch.compile(Classifier(), backend="aot_eager")
    meter = Meter(model, torch.bfloat16)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    train(model, meter, torch.bfloat16, steps=2)
    found = meter.figures()
    assert (found["amp/enabled"], found["amp/precision"]) == (1, 16)
    assert "amp/grad_underflow" in found
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def underflow(factor: float, scale: float, dtype=torch.float16) -> float:
    torch.manual_seed(0)
    model = Classifier()
    meter = Meter(model, dtype)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    train(model, meter, dtype, scaler, factor=factor)
    return meter.figures()["amp/grad_underflow"]


def test_a_scale_that_is_too_small_shows_as_underflow() -> None:
    assert underflow(1e-4, scale=1.0) > 0.5
    assert underflow(1e-4, scale=2.0**16) < 0.02
    assert underflow(1e-12, scale=1.0) == 1
    assert underflow(1e-4, scale=1.0, dtype=torch.bfloat16) < 0.02


def test_accumulated_gradients_are_looked_at_when_they_are_complete() -> None:
    model = Classifier()
    meter = Meter(model, torch.float16)
    meter.look()
    for factor in (1e-12, 1.0):
        with torch.autocast("cpu", torch.float16):
            loss = model(torch.arange(4)).square().mean() * factor
        loss.backward()
    meter.end_of_step()
    assert meter.figures()["amp/grad_underflow"] < 0.2


def test_a_fall_of_the_scale_is_a_skipped_step() -> None:
    model = Classifier()
    meter = Meter(model, torch.float16, skipped=5)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    overflows = {0, 3}
    train(
        model, meter, torch.float16, scaler, steps=6,
        backward_of=lambda loss, step: loss * (math.inf if step in overflows else 1),
    )  # fmt: skip
    found = meter.figures()
    assert found["amp/skipped_steps"] == meter.skipped == 7
    assert found["amp/loss_scale"] == scaler.get_scale() == 2.0**10


def test_the_training_is_the_same_with_it() -> None:
    model = Classifier()
    twin, silent = copy.deepcopy(model), Meter(nn.Linear(1, 1), None)

    def half() -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=2.0**16)

    state = torch.get_rng_state()
    seen = train(model, Meter(model, torch.float16), torch.float16, half())
    assert torch.equal(torch.get_rng_state(), state)
    assert train(twin, silent, torch.float16, half()) == seen
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


class Reads(TorchDispatchMode):
    """Counts the values that are read from the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


def test_nothing_waits_for_the_device_until_figures_are_asked_for() -> None:
    model = Classifier()
    meter = Meter(model, torch.float16)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    meter.begin(scaler)
    loss = scaler.scale(model(torch.arange(4)).square().mean())
    with Reads() as reads:
        meter.look()
        loss.backward()
        meter.stepped(scaler)
        meter.end_of_step()
        assert reads.count == 0
        scaler.get_scale()
        assert reads.count == 1  # it would have been seen


def hooks(model: nn.Module) -> int:
    found = sum(len(module._forward_hooks) for module in model.modules())
    return found + sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())


def test_hooks_are_there_for_a_look_and_gone_behind_it() -> None:
    model = Classifier()
    meter = Meter(model, None)
    assert hooks(model) == 0
    meter.look()
    meter.look()
    assert hooks(model) == 2 + 5
    meter.close()
    assert hooks(model) == 0
