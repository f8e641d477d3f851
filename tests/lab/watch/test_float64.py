"""float32 steps that are computed in float64, held against what is written in float64."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_amp.lab.watch.float64 import Float64

Draw = Callable[..., torch.Tensor]


def narrow(*size: int) -> torch.Tensor:
    return torch.randn(*size)


def widened(*size: int) -> torch.Tensor:
    return torch.randn(*size, dtype=torch.float32).double()


class Model(nn.Module):
    """Parts of many kinds, and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.convolution = nn.Sequential(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4))
        self.recurrent = nn.LSTM(8, 8, batch_first=True)
        self.table = nn.Embedding(5, 8)
        self.loose = nn.Parameter(torch.randn(8, 8))
        self.norm = nn.LayerNorm(8)


def products(model: Model, x: torch.Tensor, draw: Draw) -> torch.Tensor:
    return model.norm(model.linear(x) @ model.loose)


def convolution(model: Model, x: torch.Tensor, draw: Draw) -> torch.Tensor:
    return model.convolution(x[:, None])


def recurrence(model: Model, x: torch.Tensor, draw: Draw) -> torch.Tensor:
    return model.recurrent(x[None])[0]


def attention(model: Model, x: torch.Tensor, draw: Draw) -> torch.Tensor:
    heads = model.linear(x)[None, None]
    return F.scaled_dot_product_attention(heads, heads, heads)


def dropout(model: Model, x: torch.Tensor, draw: Draw) -> torch.Tensor:
    return F.dropout(model.linear(x), 0.5)


def noise(model: Model, x: torch.Tensor, draw: Draw) -> torch.Tensor:
    return model.linear(x + draw(*x.shape))


def a_cast_to_float32(model: Model, x: torch.Tensor, draw: Draw) -> torch.Tensor:
    wide = x.dtype is torch.float64
    return model.linear(model.linear(x).to(torch.float64 if wide else torch.float32))


def made_on_the_way(model: Model, x: torch.Tensor, draw: Draw) -> torch.Tensor:
    sums = torch.zeros(2, 8)
    sums.index_add_(0, torch.arange(len(x)) % 2, model.linear(x))
    return model.linear(sums)


def looked_up(model: Model, x: torch.Tensor, draw: Draw) -> torch.Tensor:
    return model.table(torch.arange(5)) @ model.linear(x).T


def into_a_kept_float32(model: Model, x: torch.Tensor, draw: Draw) -> torch.Tensor:
    kept = torch.zeros(8, 8, dtype=torch.float32)
    kept[: len(x)] = model.linear(x).detach().to(torch.float32)
    return model.linear(x) * kept[: len(x)].sum()


KINDS = [
    products, convolution, recurrence, attention, dropout, noise, a_cast_to_float32,
    made_on_the_way, looked_up,
]  # fmt: skip


@contextmanager
def double_by_default():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def trained(kind, wide: bool, float64: Float64 | None = None) -> list[float]:
    """Return three losses of a training: written in float64, or in float32."""
    torch.manual_seed(0)
    model, x = Model(), torch.randn(6, 8)
    if wide:
        model, x = model.double(), x.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        with float64.active() if float64 else double_by_default() if wide else nullcontext():
            optimizer.zero_grad()
            loss = kind(model, x, widened if wide else narrow).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_step_in_float64_is_what_it_would_be_if_it_were_written_so(kind) -> None:
    found, exact, plain = trained(kind, False, Float64()), trained(kind, True), trained(kind, False)
    assert found == pytest.approx(exact, rel=1e-13)
    assert plain == pytest.approx(exact, rel=1e-4)
    assert plain != pytest.approx(exact, rel=1e-11)  # so that the first line can fail


def test_what_is_written_into_a_tensor_that_stays_float32_is_rounded_and_works() -> None:
    found = trained(into_a_kept_float32, False, Float64())
    assert found == pytest.approx(trained(into_a_kept_float32, False), rel=1e-5)


def test_everything_is_put_back_that_others_may_share() -> None:
    model, loose = Model(), torch.randn(3, requires_grad=True)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    loose.grad = torch.ones(3)
    float64 = Float64()
    with float64.active():
        out = model.convolution(torch.randn(2, 1, 8)).mean() * loose.sum()
        assert out.dtype is torch.float64
        out.backward()
        assert loose.grad.dtype is torch.float64
    float64.undo()
    after = model.state_dict()
    assert {name: each.dtype for name, each in after.items()} == {
        name: each.dtype for name, each in before.items()
    }
    assert all(
        torch.equal(after[name], before[name])
        for name in before
        if before[name].is_floating_point()  # batch normalization counts its batches as ever
    )
    assert loose.dtype is torch.float32
    assert torch.equal(loose.grad, torch.ones(3))
    assert all(each.grad is None for each in model.parameters())
    assert torch.get_default_dtype() is torch.float32
    assert model.linear(torch.ones(1, 8)).dtype is torch.float32


def test_a_parameter_that_is_only_looked_at_stays_as_it_is() -> None:
    weight = torch.randn(3, requires_grad=True)
    with Float64().active():
        assert weight.grad is None
        assert weight.shape == (3,)
    assert weight.dtype is torch.float32


@pytest.mark.parametrize(
    "draw",
    [
        lambda _: torch.rand(4, 4),
        lambda _: torch.randn(4, 4),
        lambda _: torch.normal(0.0, 1.0, (4, 4)),
        torch.rand_like,
        lambda wide: torch.bernoulli(wide.sigmoid()),
        lambda wide: wide.clone().uniform_(),
        lambda wide: wide.clone().normal_(),
        lambda wide: wide.clone().exponential_(),
        lambda wide: torch.multinomial(wide.sigmoid(), 2),
        lambda _: torch.randint(10, (4, 4)),
        lambda _: torch.randperm(9),
    ],
)
def test_random_numbers_are_those_of_a_float32_run(draw) -> None:
    torch.manual_seed(1)
    values = torch.randn(4, 4)
    state = torch.get_rng_state()
    plain = draw(values)
    torch.set_rng_state(state)
    with Float64().active():
        found = draw(values.double())
    assert torch.equal(found, plain.to(found.dtype))
    assert found.dtype is (torch.float64 if plain.is_floating_point() else plain.dtype)
    assert torch.equal(torch.get_rng_state(), _after(draw, values, state))


def _after(draw, values: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    torch.set_rng_state(state)
    draw(values)
    return torch.get_rng_state()


def test_an_operator_that_draws_and_computes_in_one_is_refused() -> None:
    with Float64().active(), pytest.raises(NotImplementedError, match="rrelu_with_noise draws"):
        F.rrelu(torch.randn(4).double(), training=True)


def test_attention_that_drops_on_a_device_is_refused() -> None:
    heads = torch.randn(1, 1, 4, 8, device="meta")
    with Float64().active():
        with pytest.raises(NotImplementedError, match="draws other random numbers"):
            F.scaled_dot_product_attention(heads, heads, heads, dropout_p=0.1)
        F.scaled_dot_product_attention(heads, heads, heads)
        F.scaled_dot_product_attention(query=heads, key=heads, value=heads)


def test_a_wrapper_of_tensors_is_refused() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    wrapped = nn.Parameter(TwoTensor(torch.randn(3), torch.randn(3)))
    with Float64().active(), pytest.raises(NotImplementedError, match="can't be widened"):
        wrapped * 2


def test_a_list_that_a_module_fills_is_the_caller_s() -> None:
    class Collects(nn.Module):
        def forward(self, x, found):
            found.append(x.sum())
            return x

    found = []
    with Float64().active():
        assert Collects()(torch.ones(2), found).dtype is torch.float64
    assert len(found) == 1


def test_a_buffer_of_two_modules_stays_one() -> None:
    one, other = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    other.running_mean = one.running_mean
    float64 = Float64()
    with float64.active():
        one(torch.randn(3, 4))
        other(torch.randn(3, 4))
        assert one.running_mean is other.running_mean
        assert one.running_mean.dtype is torch.float64
    float64.undo()
    assert one.running_mean is other.running_mean
    assert one.running_mean.dtype is torch.float32
