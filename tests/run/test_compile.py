"""Compiled models: inspection leaves them compiled, and says where it could not see."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

from pytest_amp.run.ops import OpRecord
from tests.laboratory import active, codes, measure, train, workbench


class Compiler:
    """A backend that counts the graphs that it compiles and their calls.

    `unseen`: its graphs run like fused kernels, out of sight of dispatch modes.
    """

    def __init__(self, unseen=False) -> None:
        self.count = Counter()
        self._unseen = unseen
        self.backend = aot_autograd(fw_compiler=self._compile)

    def _compile(self, graph, inputs):
        self.count["compiled"] += 1

        def call(*args):
            self.count["called"] += 1
            if not self._unseen:
                return graph(*args)
            with torch._C._DisableTorchDispatch():
                return graph(*args)

        return make_boxed_func(call)

    def during(self, step):
        """What `step` compiled and called."""
        before = Counter(self.count)
        step()
        return dict(self.count - before)


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled(compiler, in_place=False):
    def setup(arm):
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x, y = torch.randn(16, 8), torch.randint(4, (16,))
        call = model
        if in_place:
            model.compile(backend=compiler.backend)
        else:
            call = torch.compile(model, backend=compiler.backend)
        return train(arm, optimizer, lambda: nn.functional.cross_entropy(call(x), y))

    return setup


def inspected(resident):
    recorder = OpRecord()
    with recorder.watching():
        resident.step()
    return recorder.operators()


@pytest.mark.parametrize("name", ["fp32", "amp"])
def test_a_compiled_model_is_as_compiled_during_and_after_inspection_as_before(name) -> None:
    compiler = Compiler()
    bench = workbench(compiled(compiler))
    with active(bench, name) as resident:
        assert compiler.during(resident.step) == {"compiled": 2, "called": 2}
        before = compiler.during(resident.step)
        during = compiler.during(lambda: inspected(resident))
        after = compiler.during(resident.step)
    assert before == during == after == {"called": 2}  # forward and backward
    with active(bench, name) as resident:  # the same class again, in a fresh build
        first = compiler.during(resident.step)
        assert first["called"] == 2
        assert compiler.during(resident.step) == {"called": 2}


def test_a_whole_experiment_runs_compiled_graphs_in_every_step_of_every_build() -> None:
    compiler = Compiler()
    report = measure(compiled(compiler), steps=5)
    assert report.verdict == "pass"
    assert compiler.count["called"] == 2 * (6 + 6 + 5)  # amp, fp32, floor; two were inspected
    assert compiler.count["compiled"] <= 2 * 3


def test_nothing_is_recompiled_because_of_us() -> None:
    with (
        torch.compiler.set_stance("default"),
        active(workbench(compiled(Compiler())), "amp") as arm,
    ):
        arm.step()
        with torch.compiler.set_stance("fail_on_recompile"):
            inspected(arm)
            arm.step()
    assert not counters["recompiles"]


@pytest.mark.parametrize("in_place", [False, True])
def test_that_graphs_ran_compiled_is_on_the_record(in_place) -> None:
    with active(workbench(compiled(Compiler(), in_place)), "amp") as resident:
        resident.step()
        assert inspected(resident).compiled
    eager = workbench(compiled(Compiler(), in_place))
    with torch.compiler.set_stance("force_eager"), active(eager, "amp") as resident:
        assert not inspected(resident).compiled


def test_compiled_inference_is_on_the_record_too() -> None:
    teacher = torch.compile(nn.Linear(4, 4), backend=Compiler().backend)
    x = torch.randn(2, 4)

    def step():
        with torch.no_grad():
            teacher(x)

    step()
    recorder = OpRecord()
    with recorder.watching():
        step()
    assert recorder.operators().compiled


def test_coverage_of_a_compiled_model_whose_operators_are_seen_is_known() -> None:
    report = measure(compiled(Compiler()), min_coverage=0.9)
    assert report.coverage == 1
    assert report.gate("coverage").verdict == "pass"


def test_coverage_of_a_model_whose_graphs_hide_their_operators_is_unknown_and_no_fault() -> None:
    report = measure(compiled(Compiler(unseen=True)), min_coverage=0.9)
    assert report.coverage is None
    assert report.gate("coverage").verdict == "not_gated"
    assert "compiled graphs ran" in report.gate("coverage").reason
    assert codes(report) == []
    assert report.verdict == "pass"
