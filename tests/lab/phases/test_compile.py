"""Compiled models: inspection leaves them compiled, and says where it could not see."""

from __future__ import annotations

import sys
import types
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

from pytest_amp.lab.watch import events
from pytest_amp.lab.watch.operators import OpRecord
from tests.helpers.lab import SimulatedDevice, active, codes, measure, train, workbench


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


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 4))

    def forward(self, x):  # torch's own containers, compiled in place, stay as they are
        return self.layers(x)


def compiled(compiler, in_place=False):
    def setup(arm):
        model = Model()
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
    assert during == {}  # run eagerly, where its operators are seen
    assert before == after == {"called": 2}  # forward and backward
    with active(bench, name) as resident:  # the same class again, in a fresh build
        first = compiler.during(resident.step)
        assert first["called"] == 2
        assert compiler.during(resident.step) == {"called": 2}


def test_a_whole_experiment_runs_compiled_graphs_in_every_step_but_the_inspected_ones() -> None:
    compiler = Compiler()
    report = measure(compiled(compiler), steps=5)
    assert report.verdict == "pass"
    assert compiler.count["called"] == 2 * (5 + 5 + 5)  # amp, fp32, floor
    assert compiler.count["compiled"] == 2 * 3


@pytest.mark.parametrize("in_place", [False, True])
def test_timed_steps_are_compiled_after_the_inspection(in_place) -> None:
    compiler, device = Compiler(), SimulatedDevice()
    plain = compiled(compiler, in_place)
    calls = []

    def setup(arm):
        step = plain(arm)

        def counted():
            before = compiler.count["called"]
            loss = step()
            calls.append(compiler.count["called"] - before)
            device.time_s += 0.02
            return loss

        return counted

    measure(setup, device, static=False, steps=4, max_time=3)
    assert calls[:13] == [2] * 8 + [0] * 5  # parity in both arms, and then their inspection
    assert len(calls) > 40
    assert set(calls[13:]) == {2}


LIMIT = (
    "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
)


@torch._dynamo.config.patch({LIMIT: 2})
def test_a_class_that_many_tests_compile_is_compiled_in_all_of_them() -> None:
    """Dynamo gives up on a class after so many compilations in one process, without a word."""
    for size in (4, 5, 6, 7):
        compiler = Compiler()

        def setup(arm, size=size, compiler=compiler):
            model = torch.compile(nn.Linear(size, size), backend=compiler.backend, dynamic=False)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            x = torch.randn(2, size)
            return train(arm, optimizer, lambda: model(x).square().mean())

        measure(setup, steps=3)
        assert compiler.count["called"] == 2 * (3 + 3 + 3)


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


@pytest.mark.parametrize("unseen", [False, True])
def test_coverage_of_a_compiled_model_is_known_also_where_fused_kernels_hide_it(unseen) -> None:
    report = measure(compiled(Compiler(unseen)), min_coverage=0.9)
    assert report.coverage == 1
    assert report.gate("coverage").verdict == "pass"
    assert report.verdict == "pass"
    assert codes(report) == []


def test_autocast_that_is_never_entered_is_told_of_a_compiled_model_too() -> None:
    plain = compiled(Compiler(unseen=True))

    def setup(arm):
        arm.autocast = nullcontext
        return plain(arm)

    report = measure(setup)
    assert codes(report) == ["AMP101"]
    assert report.coverage == 0


def test_memory_that_runs_out_in_the_inspected_step_leaves_coverage_unknown() -> None:
    """A compiled step may fit where its eager twin does not."""

    def setup(arm):
        model = nn.Linear(4, 4)
        step = train(
            arm, torch.optim.SGD(model.parameters()), lambda: model(torch.ones(2, 4)).sum()
        )

        def crowded():
            if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
                raise torch.OutOfMemoryError("out of memory")
            return step()

        return crowded

    report = measure(setup, min_coverage=0.5)
    assert report.verdict == "pass"
    assert report.coverage is None
    assert "memory ran out in the inspected step" in report.gate("coverage").reason
    assert codes(report) == []


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_flex_attention_is_seen() -> None:
    flex_attention = pytest.importorskip("torch.nn.attention.flex_attention").flex_attention
    compiled_flex = torch.compile(flex_attention, backend=Compiler().backend)
    x = torch.randn(1, 2, 16, 8)
    recorder = OpRecord()
    with torch.no_grad(), recorder.watching():
        compiled_flex(x, x, x)
    seen = recorder.operators()
    known = any(str(op) == "flex_attention" for op in torch.utils.flop_counter.flop_registry)
    assert bool(seen.flops) == known  # since torch 2.12
    assert bool(seen.unknown) != known


@pytest.mark.parametrize(
    ("what", "module", "cls", "method"),
    [pytest.param(*each, id=each[1]) for each in events.OUT_OF_SIGHT],
)
def test_what_is_launched_past_the_dispatcher_is_told(monkeypatch, what, module, cls, method):
    class Launcher:
        pass

    setattr(Launcher, method, lambda _: 3)
    monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{cls: Launcher}))

    def setup(arm):
        model = nn.Linear(4, 4)
        optimizer = torch.optim.SGD(model.parameters())
        launcher = Launcher()
        return train(
            arm, optimizer, lambda: model(torch.ones(2, 4)).sum() + 0 * getattr(launcher, method)()
        )

    original = getattr(Launcher, method)
    report = measure(setup, min_coverage=0.5)
    assert getattr(Launcher, method) is original
    assert report.coverage is None
    assert report.gate("coverage").verdict == "not_gated"
    assert what in report.gate("coverage").reason
    assert codes(report) == []
