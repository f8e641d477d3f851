"""Where an infinity came from: the first module and operator are found and named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_amp.run import nonfinite
from tests.laboratory import measure, train, workbench

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


def test_hooks_are_gone_afterwards_also_after_an_exception() -> None:
    hooks = torch.nn.modules.module._global_forward_hooks
    pre_hooks = torch.nn.modules.module._global_forward_pre_hooks

    def setup(arm):
        model = overflowing(1.0)(arm)

        def step():
            model()
            raise ZeroDivisionError

        return step

    with pytest.raises(ZeroDivisionError):
        nonfinite.locate(workbench(setup, FP16), 0)
    assert not hooks
    assert not pre_hooks


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
