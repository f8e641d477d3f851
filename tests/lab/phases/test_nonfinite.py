"""Where an infinity came from: the first module and operator are found and named."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from pytest_amp.experiment.job import Job
from pytest_amp.experiment.run import run
from pytest_amp.lab.machine.device import Device
from pytest_amp.lab.phases import nonfinite
from pytest_amp.progress import Progress
from pytest_amp.settings.resolved import resolve
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


# Going backward


HERE = Path(__file__).name


def line_of(mark: str) -> str:
    """The place of the one line of this file that ends with the mark."""
    lines = Path(__file__).read_text("utf-8").splitlines()
    [number] = [index for index, line in enumerate(lines, 1) if line.endswith(f"# {mark}")]
    return f"{HERE}:{number}"


def stuck(loss_of, scale=1.0):
    """A linear layer whose loss is finite; `scale` is the first loss scale."""

    def setup(arm):
        model = nn.Linear(4, 4)
        nn.init.ones_(model.weight)
        nn.init.zeros_(model.bias)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        own = torch.amp.GradScaler("cpu", init_scale=scale, enabled=arm.enabled)
        x = torch.ones(2, 4)
        arm.scaler = own
        return train(arm, optimizer, lambda: loss_of(model(x)))

    return setup


def rooted(out):
    out = out.half() * 0
    return out.sqrt().sum()  # the root


def test_the_forward_line_and_the_node_of_a_gradient_are_named() -> None:
    origin = nonfinite.locate_stuck(workbench(stuck(rooted), FP16), 0, 1.0)
    assert (origin.op, origin.phase, origin.node) == ("aten::sqrt", "backward", "SqrtBackward0")
    assert origin.location.endswith(line_of("the root"))
    assert (origin.dtype, origin.made, origin.at_one) == ("float16", "inf", True)
    assert origin.inputs == (1.0, 0.0)


def test_an_overflow_of_the_scale_is_told_from_the_steps_own() -> None:
    setup = stuck(lambda out: out.float().sum(), scale=2.0**20)
    origin = nonfinite.locate_stuck(workbench(setup, FP16), 0, 2.0**20)
    assert (origin.phase, origin.at_one, origin.scale) == ("backward", False, 2.0**20)
    healthy = stuck(lambda out: out.float().sum(), scale=1.0)
    assert nonfinite.locate_stuck(workbench(healthy, FP16), 0, 1.0) is None


def test_a_cast_that_autocast_made_is_named_by_what_it_casts() -> None:
    """The loss works in float32, and its gradient is beyond float16."""

    def loss_of(out):
        return F.binary_cross_entropy(out.half().sigmoid() * 0 + 1, torch.zeros_like(out).half())

    origin = nonfinite.locate_stuck(workbench(stuck(loss_of), FP16), 0, 1.0)
    assert (origin.op, origin.dtype) == ("aten::binary_cross_entropy", "float16")
    assert origin.node == "BinaryCrossEntropyBackward0"


class Boosted(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.factor = 1e5
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        large = grad * ctx.factor  # the boost
        return large / ctx.factor


def test_a_custom_function_is_named_by_the_line_of_its_backward_pass() -> None:
    setup = stuck(lambda out: Boosted.apply(out.half()).float().sum())
    origin = nonfinite.locate_stuck(workbench(setup, FP16), 0, 1.0)
    assert (origin.op, origin.node) == ("Boosted", "BoostedBackward")
    assert origin.location.endswith(line_of("the boost"))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_gradient_of_a_checkpointed_module_has_its_line(reentrant) -> None:
    class Root(nn.Module):
        def forward(self, x):
            return (x.half() * 0).sqrt()  # in a checkpoint

    root = Root()

    def loss_of(out):
        return checkpoint(root, out, use_reentrant=reentrant).sum()

    origin = nonfinite.locate_stuck(workbench(stuck(loss_of), FP16), 0, 1.0)
    assert (origin.op, origin.node) == ("aten::sqrt", "SqrtBackward0")
    assert origin.location.endswith(line_of("in a checkpoint"))


def test_a_gradient_of_a_gradient_has_the_line_of_its_forward_pass() -> None:
    """The first derivative of a small number's root is finite, and the second is not."""

    def loss_of(out):
        small = out.half() * 1e-7
        root = small.sqrt()  # differentiated twice
        (first,) = torch.autograd.grad(root.sum(), small, create_graph=True)
        return first.float().sum()

    origin = nonfinite.locate_stuck(workbench(stuck(loss_of), FP16), 0, 1.0)
    assert (origin.op, origin.phase, origin.node) == ("aten::sqrt", "backward", "DivBackward0")
    assert origin.location.endswith(line_of("differentiated twice"))


def test_gradients_that_were_not_zeroed_after_an_overflow_are_told() -> None:
    def setup(arm):
        model = nn.Linear(4, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, enabled=arm.enabled)

        def step():
            with arm.autocast():
                loss = model(torch.ones(2, 4)).float().sum()
            scaler.scale(loss).backward()  # adds to what is there
            scaler.step(optimizer)
            scaler.update()
            return loss

        return step

    origin = nonfinite.locate_stuck(workbench(setup, FP16), 0, 2.0**20)
    assert (origin.phase, origin.at_one) == ("kept", False)
    assert origin.location.endswith(line_of("adds to what is there"))


def test_weights_that_the_step_before_ruined_are_traced_to_its_gradients() -> None:
    def setup(arm):
        model = nn.Linear(4, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        factors = iter([1.0, 1e9, 1.0, 1.0])

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = model(torch.ones(2, 4)).float().sum() * next(factors)  # the factor
            loss.backward()
            optimizer.step()
            return loss

        return step

    origin = nonfinite.locate(workbench(setup, FP16), 2, guarded=False)
    assert (origin.step, origin.phase) == (1, "backward")
    assert origin.location.endswith(line_of("the factor"))


@pytest.mark.parametrize(("loss_of", "located"), [(rooted, True), (torch.Tensor.mean, False)])
def test_only_a_test_with_a_sign_of_a_fault_is_run_once_more(loss_of, located) -> None:
    phases = set()
    progress = Progress(show=lambda now: phases.add(now.phase))
    settings = resolve([("cli", {"static": True, "steps": 8, "dtype": "float16"})])
    report = run(Job("test_step", stuck(loss_of), Device(torch.device("cpu")), settings), progress)
    assert ("locating" in phases) is located
    assert [f.location.endswith(line_of("the root")) for f in report.findings] == [True] * located
