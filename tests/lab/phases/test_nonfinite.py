"""Where an infinity came from: the first module and operator are found and named."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pytest_amp.lab.phases import nonfinite
from tests.helpers.lab import measure, train, workbench

FP16 = torch.float16


class Square(nn.Module):
    def forward(self, x):
        return x * x


class Identity(nn.Module):
    def forward(self, x):
        return x + 0


def overflowing(scale, build=lambda: nn.Sequential(nn.Linear(4, 4), Square(), Identity())):
    """A model whose second module squares what is `scale` large; float16 ends at 65504."""

    def setup(arm):
        model = build()
        nn.init.constant_(model[0].weight, scale / 4)
        nn.init.zeros_(model[0].bias)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        x = torch.ones(2, 4)
        return train(arm, optimizer, lambda: model(x).float().mean())

    return setup


def test_the_first_module_and_operator_are_named() -> None:
    origin = nonfinite.locate(workbench(overflowing(1000.0), FP16), 0)
    assert (origin.step, origin.op, origin.module) == (0, "aten::mul", "1")


def test_a_nested_module_is_named_by_its_path() -> None:
    def build():
        block = nn.Sequential(Identity(), Square())
        return nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"mlp": block})["mlp"], Identity())

    origin = nonfinite.locate(workbench(overflowing(1000.0, build), FP16), 0)
    assert origin.module == "1.1"


def test_an_operator_outside_of_any_module_has_no_module() -> None:
    def setup(arm):
        model = nn.Linear(4, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        x = torch.ones(2, 4)
        return train(arm, optimizer, lambda: (model(x) * 0 + 60000).mul(2).float().mean())

    origin = nonfinite.locate(workbench(setup, FP16), 0)
    assert (origin.op, origin.module) == ("aten::mul", None)


def test_a_weight_that_overflows_when_it_is_cast_is_found_at_the_cast() -> None:
    def setup(arm):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        nn.init.constant_(model[1].weight, 1e6)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        return train(arm, optimizer, lambda: model(torch.ones(2, 4)).float().mean())

    origin = nonfinite.locate(workbench(setup, FP16), 0)
    assert (origin.op, origin.module) == ("aten::_to_copy", "1")


def test_a_finite_step_has_no_origin() -> None:
    assert nonfinite.locate(workbench(overflowing(10.0), FP16), 0) is None
    assert nonfinite.locate(workbench(overflowing(1000.0), torch.bfloat16), 0) is None


def test_scaled_gradients_that_overflow_are_not_blamed_for_the_loss() -> None:
    def setup(arm):
        first, second = overflowing(100.0)(arm), overflowing(1000.0)(arm)

        def step():
            first()  # its forward pass is finite, its scaled gradients are not
            return second()

        return step

    assert nonfinite.locate(workbench(overflowing(100.0), FP16), 0) is None
    origin = nonfinite.locate(workbench(setup, FP16), 0)
    assert (origin.op, origin.module) == ("aten::mul", "Sequential#2.1")  # the second model's


class Masked(nn.Module):
    """Attention as causal models write it: infinities on purpose, and then a softmax."""

    def __init__(self, fill):
        super().__init__()
        self.fill = fill

    def forward(self, x):
        future = torch.ones(2, 2).triu(1).bool()
        return self.fill(x @ x.t(), future).softmax(-1) @ x


FILLS = {
    "masked_fill": lambda scores, future: scores.masked_fill(future, -math.inf),
    "masked_fill_": lambda scores, future: scores.clone().masked_fill_(future, -math.inf),
    "full": lambda scores, future: torch.where(future, torch.full((2, 2), -math.inf), scores),
    "mask": lambda scores, future: scores + torch.zeros(2, 2).masked_fill(future, -math.inf),
}


@pytest.mark.parametrize("fill", FILLS)
def test_a_mask_that_is_filled_with_infinity_is_not_blamed(fill) -> None:
    build = lambda: nn.Sequential(nn.Linear(4, 4), Masked(FILLS[fill]), Square())  # noqa: E731
    origin = nonfinite.locate(workbench(overflowing(0.9, build), FP16), 0)
    assert origin is None
    model = nn.Sequential(Masked(FILLS[fill]), nn.Linear(4, 4), Square())

    def setup(arm):
        nn.init.constant_(model[1].weight, 1000.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        return train(arm, optimizer, lambda: model(torch.ones(2, 4)).float().mean())

    origin = nonfinite.locate(workbench(setup, FP16), 0)
    assert (origin.op, origin.module) == ("aten::mul", "2")


def test_a_row_of_nothing_but_infinities_is_named_where_it_is_no_number_any_more() -> None:
    def setup(arm):
        scores = nn.Parameter(torch.zeros(2, 2))
        optimizer = torch.optim.SGD([scores], lr=0.0)
        everything = torch.ones(2, 2).bool()

        def loss_of():
            return (scores * 2).masked_fill(everything, -math.inf).softmax(-1).sum()

        return train(arm, optimizer, loss_of)

    assert nonfinite.locate(workbench(setup, FP16), 0).op == "aten::_softmax"


def test_an_operator_that_overflows_in_place_is_found() -> None:
    class Grow(nn.Module):
        def forward(self, x):
            return x.mul_(100)

    def build():
        return nn.Sequential(nn.Linear(4, 4), Grow(), Identity())

    origin = nonfinite.locate(workbench(overflowing(1000.0, build), FP16), 0)
    assert (origin.op, origin.module) == ("aten::mul_", "1")


def test_a_compiled_model_is_looked_through_without_a_warning() -> None:
    def setup(arm):
        model = nn.Sequential(nn.Linear(4, 4), Square())
        nn.init.constant_(model[0].weight, 250.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        call = torch.compile(model, backend="eager")
        return train(arm, optimizer, lambda: call(torch.ones(2, 4)).float().mean())

    origin = nonfinite.locate(workbench(setup, FP16), 0)
    assert (origin.op, origin.module) == ("aten::mul", "1")


def test_a_later_step_is_reached_first() -> None:
    def setup(arm):
        model = nn.Sequential(nn.Linear(4, 4), Square())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        scales = iter([1.0, 1.0, 1e3, 1e3])

        def loss_of():
            return model(next(scales) * 4 * torch.ones(2, 4)).float().mean()

        return train(arm, optimizer, loss_of)

    origin = nonfinite.locate(workbench(setup, FP16), 2)
    assert (origin.step, origin.op, origin.module) == (2, "aten::mul", "1")


def test_the_finding_names_module_operator_and_step() -> None:
    report = measure(overflowing(1000.0), dtype="float16")
    [finding] = report.findings
    assert finding.code == "AMP301"
    assert finding.module == "1"
    assert finding.evidence["op"] == "aten::mul"
    assert finding.evidence["step"] == 1
    assert report.verdict == "fail"
    assert report.gate("loss_diff").verdict == "fail"


def test_the_modules_call_is_put_back_also_after_an_exception() -> None:
    call = nn.Module.__call__

    def setup(arm):
        model = overflowing(1.0)(arm)

        def step():
            model()
            raise ZeroDivisionError

        return step

    with pytest.raises(ZeroDivisionError):
        nonfinite.locate(workbench(setup, FP16), 0)
    assert nn.Module.__call__ is call


def test_a_module_that_raises_and_is_caught_does_not_shift_the_names() -> None:
    class Raises(nn.Module):
        def forward(self, x):
            raise KeyError

    class Catches(nn.Module):
        def __init__(self):
            super().__init__()
            self.raises = Raises()

        def forward(self, x):
            try:
                return self.raises(x)
            except KeyError:
                return x

    def build():
        return nn.Sequential(nn.Linear(4, 4), Catches(), Square())

    assert nonfinite.locate(workbench(overflowing(1000.0, build), FP16), 0).module == "2"
