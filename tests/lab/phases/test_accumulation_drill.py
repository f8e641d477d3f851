"""The accumulation drill: the sum of what backward passes brought, beside what optimizers see."""

from __future__ import annotations

import gc
import itertools
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils.checkpoint import checkpoint

from pytest_amp.lab.phases.accumulation_drill import accumulated
from tests.helpers.lab import codes, measure, workbench

HALF = torch.float16
SCALE = 2.0**8  # at which nothing is skipped


def mlp():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def training(
    count=4,
    *,
    between=lambda *_: None,
    last=lambda *_: None,
    forward=lambda model, x: model(x),
    optimizer_of=lambda model: torch.optim.SGD(model.parameters(), lr=0.05),
    model_of=mlp,
    init_scale=SCALE,
):
    """`between(arm, model, passes)` follows each backward pass, `last(arm, model, opt)` all."""

    def setup(arm):
        model, batches = model_of(), [torch.randn(8, 8) for _ in range(count)]
        y, optimizer = torch.randint(4, (8,)), optimizer_of(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, enabled=arm.scaler.is_enabled())

        def step():
            optimizer.zero_grad()
            total = 0.0
            for passes, x in enumerate(batches, 1):
                with arm.autocast():
                    loss = F.cross_entropy(forward(model, x).float(), y) / count
                scaler.scale(loss).backward()
                between(arm, model, passes)
                total += loss.detach()
            last(arm, model, optimizer, scaler)
            scaler.step(optimizer)
            scaler.update()
            return total

        return step

    return setup


def drilled(setup, dtype=torch.bfloat16, scale=None, steps=8):
    return accumulated(workbench(setup, dtype), steps, scale)


def fused(model):
    return torch.optim.AdamW(model.parameters(), fused=True)


def in_segments(model, x):
    return checkpoint(model, x.requires_grad_(), use_reentrant=True)


def clipped(arm, model, optimizer, scaler):
    scaler.unscale_(optimizer)
    clip_grad_norm_(model.parameters(), 0.05)


HEALTHY = {
    "plain": {},
    "fused": {"optimizer_of": fused},
    "clipped": {"last": clipped},
    "recomputed": {"forward": in_segments},
}


@pytest.mark.parametrize("kind", HEALTHY)
@pytest.mark.parametrize("dtype", [HALF, torch.bfloat16])
def test_micro_batches_add_up(kind, dtype) -> None:
    seen = drilled(training(**HEALTHY[kind]), dtype, SCALE if dtype is HALF else None)
    assert [each.parameter for each in seen.gradients] == [
        "0.weight", "0.bias", "2.weight", "2.bias",
    ]  # fmt: skip
    for each in seen.gradients:
        assert each.passes == (4, 4)
        assert max(each.errors) < 1e-6
        assert 0 < each.rounding < 0.05
        assert each.ratio == pytest.approx(1, abs=0.01)
        assert each.cosine > 0.998
    assert sum(each.share**2 for each in seen.gradients) == pytest.approx(1)
    assert seen.steps == (1, 1)
    assert seen.emptied_at is None


def test_a_step_may_be_one_micro_batch() -> None:
    def setup(arm):
        model, x, count = mlp(), torch.randn(8, 8), itertools.count(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def step():
            loss = model(x).square().mean()
            loss.backward()
            if next(count) % 3 == 0:
                optimizer.step()
                optimizer.zero_grad()
            return loss

        return step

    seen = drilled(setup)
    assert {each.passes for each in seen.gradients} == {(3, 3)}
    assert seen.steps == (3, 3)
    assert drilled(setup, steps=2).gradients == ()


def test_a_skipped_step_leaves_nothing_behind() -> None:
    seen = drilled(training(init_scale=2.0**22), HALF, steps=20)
    assert {each.passes for each in seen.gradients} == {(4, 4)}
    assert max(max(each.errors) for each in seen.gradients) < 1e-6
    assert seen.steps[0] == 1 < seen.steps[1]


def rounded(arm, model, passes):
    if arm.enabled:
        for p in model.parameters():
            p.grad.copy_(p.grad.to(torch.float8_e5m2))


def test_what_rounding_in_between_loses_is_seen_with_its_line() -> None:
    seen = drilled(training(between=rounded, last=clipped))
    for each in seen.gradients:
        assert each.errors[0] < 1e-6
        assert 0.03 < each.errors[1] < 0.3
    line = rounded.__code__.co_firstlineno + 3
    assert seen.edited_at == f"tests/lab/phases/test_accumulation_drill.py:{line}"


@pytest.mark.parametrize(
    "empty",
    [
        lambda model: model.zero_grad(),
        lambda model: model.zero_grad(set_to_none=False),
        lambda model: [p.grad.zero_() for p in model.parameters()],
    ],
)
def test_gradients_that_are_emptied_are_counted_from_there(empty) -> None:
    def between(arm, model, passes):
        if arm.enabled and passes == 3:
            empty(model)

    seen = drilled(training(between=between))
    assert {each.passes for each in seen.gradients} == {(4, 1)}
    assert max(max(each.errors) for each in seen.gradients) < 1e-6
    line = empty.__code__.co_firstlineno
    assert seen.emptied_at == f"tests/lab/phases/test_accumulation_drill.py:{line}"
    assert seen.backward_at.startswith("tests/lab/phases/test_accumulation_drill.py:")


def buffered(dtype_of):
    kept = {}

    def between(arm, model, _):
        for p in model.parameters():
            new = p.grad.to(dtype_of(arm))
            kept[p] = kept[p] + new if p in kept else new
            p.grad = None

    def last(arm, model, *_):
        for p in model.parameters():
            p.grad = kept.pop(p).float()

    return {"between": between, "last": last}


def test_sums_in_buffers_of_ones_own_are_sums_as_well() -> None:
    seen = drilled(training(64, **buffered(lambda _: torch.float32)))
    assert {each.passes for each in seen.gradients} == {(64, 64)}
    assert max(max(each.errors) for each in seen.gradients) < 1e-6
    lossy = drilled(training(64, **buffered(lambda arm: arm.dtype)))
    assert all(each.errors[0] < 1e-6 < 1e-3 < each.errors[1] for each in lossy.gradients)


def test_what_changes_gradients_on_purpose_does_so_in_both_arms() -> None:
    seen = drilled(training(last=lambda _, model, *__: clip_grad_value_(model.parameters(), 0.01)))
    assert all(min(each.errors) > 0.1 for each in seen.gradients)
    assert all(abs(each.errors[0] - each.errors[1]) < 0.05 for each in seen.gradients)


def test_a_sparse_gradient_is_left_out() -> None:
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.table = nn.Linear(8, 4), nn.Embedding(4, 4, sparse=True)

        def forward(self, x):
            return self.inner(x) + self.table(torch.arange(4).repeat(2))

    seen = drilled(training(model_of=Table))
    assert {each.parameter for each in seen.gradients} == {"inner.weight", "inner.bias"}


def test_it_builds_each_arm_once_more_and_only_where_there_are_several_passes() -> None:
    def builds(count):
        calls = []

        def setup(arm):
            calls.append(arm.name)
            return training(count)(arm)

        assert codes(measure(setup, dtype="bfloat16")) == []
        return sorted(calls)

    assert builds(2) == sorted([*builds(1), "amp", "fp32"])


def test_no_build_is_alive_while_the_next_is_made() -> None:
    made: list[weakref.ref] = []

    def model_of():
        gc.collect()
        assert [each for each in made if each() is not None] == []
        model = mlp()
        model[0].weight.register_hook(lambda gradient: gradient)
        made.append(weakref.ref(model))
        return model

    assert drilled(training(between=rounded, model_of=model_of)).gradients
    assert len(made) == 2
