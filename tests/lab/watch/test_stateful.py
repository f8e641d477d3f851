"""What an arm made that has state: found, looked at, compared and put back."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim.lr_scheduler import LinearLR, SequentialLR, StepLR

from pytest_amp.lab.watch.stateful import (
    LooseParameters,
    distance,
    kind_of,
    look,
    made_since,
    objects_with_state,
    put_back,
)


class Average:
    """A user's own, and no module."""

    def __init__(self):
        self.value = torch.zeros(2)

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


class Wrapper(torch.optim.Optimizer):
    """An optimizer that is another one in a wrapper, as some frameworks have it."""

    def __init__(self, inner):
        self.optimizer = inner

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    @property
    def state(self):
        return self.optimizer.state


def test_it_finds_what_was_made_and_leaves_out_what_is_part_of_another() -> None:
    older = nn.Linear(2, 2)
    before = objects_with_state()
    assert any(each is older for each in before)
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = SequentialLR(optimizer, [LinearLR(optimizer), StepLR(optimizer, 1)], milestones=[5])
    scaler, average = GradScaler("cpu"), Average()
    made = [model, optimizer, schedule, scaler, average]
    found = made_since(before)
    assert {id(each) for each in found} == {id(each) for each in made}
    assert [kind_of(each) for each in made] == [
        "model", "optimizer", "scheduler", "scaler", "other",
    ]  # fmt: skip


def test_a_wrapped_optimizer_is_found_once() -> None:
    before = objects_with_state()
    model = nn.Linear(2, 2)
    wrapper = Wrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    assert [kind_of(each) for each in made_since(before)].count("optimizer") == 1
    assert wrapper.param_groups


def test_parameters_of_no_module_are_found_through_their_optimizer() -> None:
    before = objects_with_state()
    weight = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    loose = made_since(before)[-1]
    assert isinstance(loose, LooseParameters)
    assert (kind_of(loose), [id(each) for each in loose.tensors]) == ("model", [id(weight)])
    assert optimizer.param_groups


def trained(optimizer_of, scaler=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = optimizer_of(model.parameters())
    schedule = StepLR(optimizer, 1, gamma=0.5)

    def step():
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        schedule.step()

    return model, optimizer, schedule, step


OPTIMIZERS = {
    "sgd": lambda given: torch.optim.SGD(given, lr=0.1, momentum=0.9),
    "adamw": lambda given: torch.optim.AdamW(given, lr=0.1, fused=True),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_state_that_is_put_back_is_what_it_was(kind) -> None:
    model, optimizer, schedule, step = trained(OPTIMIZERS[kind])
    things = [model, optimizer, schedule]
    as_built = [look(each) for each in things]
    step()
    midst = [look(each) for each in things]
    assert all(distance(a, b) > 1e-6 for a, b in zip(as_built, midst, strict=True))
    step()
    for each, built, state in zip(things, as_built, midst, strict=True):
        put_back(each, built)
        assert distance(look(each), built) == 0
        put_back(each, state)
        assert distance(look(each), state) == 0
    step()  # it goes on from there, and what was looked at is nobody's
    assert distance(look(model), midst[0]) > 1e-6
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.25)
    assert optimizer.param_groups[0]["params"] == list(model.parameters())


def test_what_torch_loads_is_what_was_there() -> None:
    _, optimizer, _, step = trained(OPTIMIZERS["adamw"])
    step()
    saved, before = optimizer.state_dict(), look(optimizer)
    optimizer.load_state_dict(saved)  # the order of its entries may be another
    assert distance(look(optimizer), before) == 0


@pytest.mark.parametrize("has_scaled", [True, False])
def test_a_scaler_is_put_back_whether_it_has_begun_or_not(has_scaled) -> None:
    scaler = GradScaler("cpu", init_scale=64.0)
    built = look(scaler)
    if has_scaled:
        scaler.scale(torch.ones(()))
    put_back(scaler, {"scale": 8.0, "growth": 3})
    assert (scaler.get_scale(), scaler._get_growth_tracker()) == (8.0, 3)
    put_back(scaler, built)
    scaler.scale(torch.ones(()))
    assert (scaler.get_scale(), scaler._get_growth_tracker()) == (64.0, 0)
    off = GradScaler("cpu", enabled=False)
    put_back(off, look(off))
    assert look(off) == {}


def test_when_a_scaler_last_grew_is_no_difference() -> None:
    assert distance({"scale": 8.0, "growth": 3}, {"scale": 8.0, "growth": 0}) == 0
    assert distance({"scale": 8.0, "growth": 3}, {"scale": 4.0, "growth": 3}) == 0.5


def test_a_buffer_that_has_grown_is_put_back() -> None:
    model = nn.Module()
    model.register_buffer("cache", torch.ones(2), persistent=False)
    built = look(model)
    model.cache = torch.ones(5)
    assert distance(look(model), built) == math.inf
    put_back(model, built)
    assert model.cache.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({}, {}, 0.0),
        ({"a": 1}, {"b": 1}, math.inf),
        ({"a": [1, 2]}, {"a": [1]}, math.inf),
        ({"a": 4, "b": 1}, {"b": 1, "a": 3}, 0.25),
        ({"a": 1, "b": torch.zeros(2)}, {"a": 1, "b": torch.tensor([0.0, 2.0])}, 1.0),
        ({"a": torch.zeros(2)}, {"a": torch.zeros(3)}, math.inf),
        ({"a": torch.tensor([3, 4])}, {"a": torch.tensor([3, 4])}, 0.0),
        ({"a": torch.tensor([3, 4])}, {"a": torch.tensor([0, 0])}, 1.0),
        ({"a": True}, {"a": False}, math.inf),
        ({"a": "linear"}, {"a": "cosine"}, math.inf),
        ({"a": None}, {"a": 1.0}, math.inf),
        ({"a": print}, {"a": len}, 0.0),
    ],
)
def test_states_differ_by_what_differs_most(one, other, expected) -> None:
    assert distance(one, other) == expected
    assert distance(other, one) == expected
