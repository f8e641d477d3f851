"""What is copied of an optimizer for each arm: what torch copies, and what it leaves out."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import StepLR

from pytest_amp.errors import AmpError
from pytest_amp.lab.body import CopiedFixtures, setup_of_body
from tests.helpers.lab import codes, measure


class Scaled(SGD):
    """Keeps things on itself, of which torch's copy of an optimizer knows nothing."""

    def __init__(self, params, lr=0.1, **kept):
        super().__init__(params, lr)
        self.factor = 0.5
        vars(self).update(kept)

    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                param.grad *= self.factor
        return super().step(closure)


class Ahead(Optimizer):
    """One around another, whose groups it shares."""

    def __init__(self, inner):
        super().__init__(inner.param_groups, inner.defaults)
        self.inner, self.param_groups = inner, inner.param_groups

    def step(self, closure=None):
        return self.inner.step(closure)


class Says(SGD):
    """One that says itself what a copy keeps."""

    def __getstate__(self):
        return {**super().__getstate__(), "kept": self.kept}


def copied(**fixtures):
    return SimpleNamespace(**CopiedFixtures(fixtures, frozenset()).copied())


def test_an_optimizers_own_attributes_are_copied() -> None:
    model = nn.Linear(4, 2)
    original = Scaled(model.parameters(), history=[1, 2])
    twin = copied(model=model, optimizer=original).optimizer
    assert (twin.factor, twin.history) == (0.5, [1, 2])
    assert twin.history is not original.history


def test_what_they_refer_to_is_the_copys() -> None:
    model = nn.Linear(4, 2)
    original = Scaled(
        model.parameters(), model=model, first=[model.weight], names={model.bias: "bias"}
    )
    original.call = original.zero_grad  # a method, bound to it
    twins = copied(model=model, optimizer=original)
    twin = twins.optimizer
    assert twin.model is twins.model is not model
    assert twin.first[0] is twins.model.weight
    assert list(twin.names) == [twins.model.bias]
    assert twin.call.__self__ is twin
    assert twin.param_groups[0]["params"][0] is twins.model.weight


HELD = {
    "a list": (lambda optimizer: [optimizer], lambda value: value[0]),
    "a dict": (lambda optimizer: {"g": optimizer}, lambda value: value["g"]),
    "another": (Ahead, lambda value: value.inner),
    "another's other": (lambda inner: Ahead(Ahead(inner)), lambda value: value.inner.inner),
}


@pytest.mark.parametrize("by", HELD)
def test_it_is_found_wherever_it_is_held(by) -> None:
    model, (held, found) = nn.Linear(4, 2), HELD[by]
    twin = copied(model=model, optimizer=held(Scaled(model.parameters()))).optimizer
    assert found(twin).factor == 0.5


def test_one_around_another_goes_on_sharing_its_groups() -> None:
    model = nn.Linear(4, 2)
    twin = copied(model=model, optimizer=Ahead(Scaled(model.parameters()))).optimizer
    assert twin.param_groups is twin.inner.param_groups
    assert twin.inner.factor == 0.5


def test_a_schedulers_hand_on_step_stays_with_the_original() -> None:
    model = nn.Linear(4, 2)
    original = Scaled(model.parameters(), lr=1.0)
    twins = copied(model=model, optimizer=original, scheduler=StepLR(original, 1))
    before = model.weight.detach().clone()
    for param in twins.model.parameters():
        param.grad = torch.ones_like(param)
    twins.optimizer.step()
    assert torch.equal(model.weight, before)
    assert torch.equal(twins.model.weight, before - 0.5)


def test_a_fused_one_goes_on_unscaling_by_itself() -> None:
    model = nn.Linear(4, 2)
    original = AdamW(model.parameters(), fused=True)
    twin = copied(model=model, optimizer=original).optimizer
    assert twin._step_supports_amp_scaling


def test_a_class_that_says_what_a_copy_keeps_is_believed() -> None:
    model = nn.Linear(4, 2)
    original = Says(model.parameters(), lr=0.1)
    original.kept, original.lock = [1], threading.Lock()
    twin = copied(model=model, optimizer=original).optimizer
    assert twin.kept == [1]
    assert not hasattr(twin, "lock")


@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, Ahead])
def test_an_attribute_that_cant_be_copied_is_named_with_its_fixture(wrap) -> None:
    model = nn.Linear(4, 2)
    with pytest.raises(AmpError) as error:
        copied(model=model, mine=wrap(Scaled(model.parameters(), lock=threading.Lock())))
    message = str(error.value)
    assert message.startswith("the fixture 'mine' can't be copied for the two arms")
    assert "its Scaled's attribute 'lock', TypeError" in message
    assert "write the whole step yourself instead: request amp_benchmark" in message


def test_a_body_trains_with_such_an_optimizer() -> None:
    model, x = nn.Linear(8, 4), torch.randn(16, 8)
    fixtures = CopiedFixtures(
        {"model": model, "optimizer": Scaled(model.parameters()), "x": x}, frozenset()
    )

    def body(model, optimizer, x):
        return model(x).float().square().mean()

    report = measure(setup_of_body(body, fixtures), dtype="bfloat16")
    assert (report.verdict, codes(report)) == ("pass", [])
    assert report.fp32.losses[-1] < report.fp32.losses[0]
