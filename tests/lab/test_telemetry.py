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
        ([[1.0, -TINY], [0.0, 0.0]], (1, 2)),  # zeros are no underflow: nobody can tell
        ([1.0, 0.0, TINY], (1, 2)),
        ([[0.0, 0.0], [0.0, 0.0]], (0, 0)),
        (TINY, (1, 1)),
        ([[math.nan, 1.0], [math.inf, 1.0]], (0, 3)),
        ([], (0, 0)),
    ],
)
def test_what_underflows_is_too_small_for_the_dtype(gradient, expected) -> None:
    assert tuple(underflow_of(torch.tensor(gradient), torch.float16).tolist()) == expected


def test_bfloat16_loses_little_that_float32_would_keep() -> None:
    gradient = torch.tensor([[1.0, TINY], [2.0**-130, 1.0]])
    assert underflow_of(gradient, torch.bfloat16).tolist() == [1, 4]


class Sizes(TorchDispatchMode):
    """The largest tensor that is made."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        if isinstance(made, torch.Tensor) and not func.is_view:
            self.most = max(self.most, made.numel())
        return made


@pytest.mark.parametrize(
    "shape", [(3 * LARGEST // 64, 64), (1, 5 * LARGEST), (8, LARGEST), (64, 3, 1024, 4)]
)
@pytest.mark.parametrize("order", ["in order", "the other way round"])
def test_a_large_gradient_is_sampled(shape, order) -> None:
    gradient = torch.ones(shape) if order == "in order" else torch.ones(shape[::-1]).mT
    gradient[gradient.cumsum(-1) % 2 == 0] = TINY
    with Sizes() as sizes:
        small, nonzero = underflow_of(gradient, torch.float16).tolist()
    assert sizes.most <= LARGEST
    assert nonzero == pytest.approx(gradient.numel(), rel=0.01)
    assert small / nonzero == pytest.approx(float((gradient < 1).double().mean()), abs=0.05)


class Classifier(nn.Module):
    def __init__(self, forward=lambda net, inputs: net(inputs)) -> None:
        super().__init__()
        self.embedding, self.how = nn.Embedding(4, 8), forward
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, tokens):
        return self.how(self.net, self.embedding(tokens))


def train(model, meter, dtype=None, scaler=None, steps=3, factor=1.0, backward_of=None, looks=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    meter.begin(scaler)
    losses = []
    for step in range(steps):
        if looks is None or step in looks:
            meter.look()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = model(torch.arange(4)).square().mean() * factor
        scaler.scale(backward_of(loss, step) if backward_of else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        meter.stepped(scaler)
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


class Positions(Classifier):
    """Its own parameter is a matrix that nothing is multiplied by."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(4, 8))
        self.norm = nn.LayerNorm((4, 8))

    def forward(self, tokens):
        return self.net(self.norm(self.embedding(tokens) + self.positions)).float()


def test_a_matrix_that_nothing_is_multiplied_by_does_not_tell_the_precision() -> None:
    assert figures(Positions(), torch.bfloat16) == (1, 16)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_a_gradient_of_another_layout_is_left_out() -> None:
    model = nn.Linear(2, 2)
    model.sparse = nn.Parameter(torch.eye(2).to_sparse_csr())
    meter = Meter(model, None)
    meter.look()
    (model(torch.ones(1, 2)).sum() + (model.sparse @ torch.ones(2, 1)).sum()).backward()
    meter.stepped(None)
    assert meter.figures()["amp/grad_underflow"] == 0


def test_an_evaluation_is_no_step() -> None:
    model = Classifier()
    meter = Meter(model, torch.float16)
    meter.look()
    with torch.no_grad():
        model(torch.arange(4))
    meter.stepped(None)
    assert meter.figures()["amp/enabled"] == 1


def whole(model):
    return torch.compile(model, backend="aot_eager")


def its_part(model):
    model.net = torch.compile(model.net, backend="aot_eager")
    return model


def its_forward(model):  # as Accelerate does, which wraps what the Trainer's model is not
    model.forward = torch.compile(model.forward, backend="aot_eager")
    return model


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("compiled", [whole, its_part, its_forward])
@pytest.mark.parametrize("looks", [(0,), (0, 1, 2), (2,)])
def test_a_compiled_model_is_not_compiled_again(compiled, looks) -> None:
    model = compiled(Classifier())
    meter = Meter(model, torch.bfloat16)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    train(model, meter, torch.bfloat16, steps=4, looks=looks)
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
    assert underflow(1e-4, scale=1.0, dtype=torch.bfloat16) == 0


def test_a_gradient_that_is_zero_throughout_has_underflowed_whole() -> None:
    assert underflow(1e-12, scale=1.0) == 1


def test_accumulated_gradients_are_looked_at_when_they_are_complete() -> None:
    model = Classifier()
    meter = Meter(model, torch.float16)
    meter.look()
    for factor in (1e-12, 1.0):
        with torch.autocast("cpu", torch.float16):
            loss = model(torch.arange(4)).square().mean() * factor
        loss.backward()
    meter.stepped(None)
    assert meter.figures()["amp/grad_underflow"] < 0.2


@pytest.mark.parametrize("found", [torch.tensor([0.0, 2.0]), torch.tensor([True]), True])
def test_a_skip_that_is_told_is_counted_whatever_the_scale_does(found) -> None:
    meter = Meter(Classifier(), torch.float16)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(1))
    meter.begin(scaler)
    for skipped in (found, False, found):
        meter.overflowed(skipped)
        scaler.update(2.0 if skipped is False else 4.0)  # it falls behind a healthy step
        meter.stepped(scaler)
    assert meter.figures()["amp/skipped_steps"] == 2


def test_a_scale_that_somebody_else_has_is_not_known() -> None:
    meter = Meter(Classifier(), torch.float16)
    meter.begin(None)
    assert meter.figures().keys() == {"amp/enabled", "amp/precision"}


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
    assert hooks(model) == 5  # the first forward pass is left alone
    meter.stepped(None)
    meter.look()
    assert hooks(model) == 2 + 5
    meter.close()
    assert hooks(model) == 0


def test_hooks_that_a_step_left_when_it_raised_go_with_the_next_training() -> None:
    model = Classifier()
    Meter(model, None).look()
    assert hooks(model) == 5
    Meter(model, None)
    assert hooks(model) == 0


def test_hooks_that_can_t_all_be_set_are_taken_away() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2))
    meter = Meter(model, None)
    meter.stepped(None)
    with pytest.raises(ValueError, match="uninitialized"):
        meter.look()
    assert not any(module._forward_hooks for module in model)


def test_what_a_look_raises_does_not_end_the_step(monkeypatch) -> None:
    def out_of_memory(*_):
        raise torch.OutOfMemoryError("simulated")

    monkeypatch.setattr("pytest_amp.lab.telemetry.underflow_of", out_of_memory)
    model = Classifier()
    meter = Meter(model, None)
    meter.look()
    model(torch.arange(4)).sum().backward()
    with pytest.raises(torch.OutOfMemoryError):
        meter.stepped(None)
    assert hooks(model) == 0
