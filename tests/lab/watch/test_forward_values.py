"""What is recorded of the operators of a forward pass."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from pytest_amp.lab.watch.forward_values import ForwardValues
from pytest_amp.lab.watch.modules import ModuleStack
from pytest_amp.lab.watch.spots import spots


@contextmanager
def recorded():
    modules = ModuleStack()
    with modules, ForwardValues(modules).watching() as values:
        yield values


def names(values):
    """The operators that compute something of what they are given."""
    return [each.op.removeprefix("aten::") for each in values.computed if "ones" not in each.op]


def test_operators_are_recorded_with_their_modules_lines_and_inputs() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), torch.randn(2, 4)
    with recorded() as values:
        model(x).sum()
    product, tanh, total = values.computed
    assert [each.op for each in values.computed] == ["aten::addmm", "aten::tanh", "aten::sum"]
    assert [each.module for each in values.computed] == ["0", "1", None]
    assert all("test_forward_values.py" in each.location for each in values.computed)
    assert tanh.inputs == (product.out,)
    assert (tanh.shape, tanh.dtype, total.shape) == ((2, 4), "float32", ())


def test_moves_backward_passes_optimizers_and_clipping_are_left_out() -> None:
    weight = torch.ones(4, requires_grad=True)
    optimizer = torch.optim.Adam([weight])
    with recorded() as values:
        loss = weight.view(2, 2).t().clone().square().sum()
        loss.backward()
        nn.utils.clip_grad_norm_([weight], 1.0)
        optimizer.step()
        (weight * 2).exp()  # the next forward pass of the step
    assert names(values) == ["pow", "sum", "mul", "exp"]


def test_what_a_scaler_does_is_left_out() -> None:
    scaler, weight = torch.amp.GradScaler("cpu"), torch.ones(4, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with recorded() as values:
        scaler.scale(weight.exp().sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert names(values) == ["exp", "sum"]


def test_nothing_is_recorded_behind_the_end() -> None:
    with recorded() as values:
        torch.ones(2).exp()
        values.end()
        torch.ones(2).log()
    assert names(values) == ["exp"]


def test_it_knows_the_lines_since_the_last_product() -> None:
    x, weight = torch.randn(4, 4).bfloat16(), torch.randn(4, 4).bfloat16()
    with recorded() as values:
        h = x.exp()
        h = h @ weight
        p = h.sigmoid()
        q = p.half().float() + 1
        q.log()
    first = int(values.computed[0].location.rpartition(":")[2])

    def lines(places):
        return [int(place.rpartition(":")[2]) - first for place in places]

    log = values.computed[-1]
    assert values.computed[1].dtype == "bfloat16"
    assert log.op == "aten::log"
    assert lines(log.made_at) == [3, 2]
    assert lines(log.products) == [1]


def test_integers_count_as_inputs_and_never_as_outputs() -> None:
    with recorded() as values:
        best = torch.tensor([1.0, 3.0, 2.0]).argmax()
        torch.arange(3.0).index_select(0, best.reshape(1))
    argmax, index = values.computed[0], values.computed[-1]
    assert argmax.out == ()
    assert (1.0, 1.0) in index.inputs


def test_what_is_kept_of_a_tensor_shows_how_far_another_is() -> None:
    tensor = torch.randn(100_000)
    moved = tensor + 0.1 * torch.randn(100_000)
    kept, other = spots(tensor), spots(moved)
    assert len(kept) <= 256
    assert kept[0] == pytest.approx(float(tensor.norm()))
    assert math.dist(kept, other) / kept[0] == pytest.approx(0.1, rel=0.3)


def test_a_single_element_shows_in_the_norm() -> None:
    tensor = torch.ones(100_001)
    tensor[777] = math.inf
    assert math.isinf(spots(tensor)[0])


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (2.0, (2.0, 2.0)),
        (torch.tensor([3.0, 4.0]).double(), (5.0, 3.0, 4.0)),
        (torch.tensor([3, 4]), (5.0, 3.0, 4.0)),
        (torch.tensor([3 + 4j]), (5.0, 3.0, 4.0)),
        (torch.tensor([3.0, 4.0]).to(torch.float8_e5m2), (5.0, 3.0, 4.0)),
        (torch.tensor([]), ()),
        (torch.zeros(2, device="meta"), ()),
    ],
)
def test_all_kinds_of_numbers_are_kept_as_floats(value, kept) -> None:
    assert spots(value) == pytest.approx(kept)
