"""Peak memory on the CPU, against allocations whose size is known."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profiler

from pytest_amp.lab.phases import parity
from pytest_amp.lab.watch.memory import _on_the_cpu, peak_memory
from tests.helpers.lab import CPU, Device, measure, train, workbench

MIB = 2**20
FLOATS = MIB // 4  # how many make a MiB


def peaks(setup, dtype=torch.bfloat16, steps=3):
    bench = workbench(setup, dtype)
    return {name: parity.run(bench, name, steps)[0].peak_bytes for name in ("fp32", "amp")}


def test_what_a_step_allocates_and_frees_is_in_the_peak() -> None:
    def setup(arm):
        def step():
            first = torch.ones(3 * FLOATS)
            second = first + first  # both are there: 6 MiB
            return float(second[0])

        return step

    assert peaks(setup)["fp32"] == pytest.approx(6 * MIB, rel=0.01)


def test_memory_that_was_freed_in_time_is_not_added_up() -> None:
    def setup(arm):
        def step():
            for _ in range(5):
                block = torch.ones(4 * FLOATS)
                total = float(block[0])
                del block
            return total

        return step

    assert peaks(setup)["fp32"] == pytest.approx(4 * MIB, rel=0.01)


def test_what_the_arm_keeps_resident_is_in_the_peak() -> None:
    def setup(arm):
        data = torch.ones(8 * FLOATS)

        def step():
            return float((data[:FLOATS] * 2)[0])

        return step

    assert peaks(setup)["fp32"] == pytest.approx(9 * MIB, rel=0.01)


def test_weights_gradients_and_optimizer_state_are_in_the_peak() -> None:
    def setup(arm):
        layer = nn.Linear(512, 512, bias=False)  # 1 MiB; its gradient and Adam's two: 4 MiB
        optimizer = torch.optim.Adam(layer.parameters(), foreach=False)
        x = torch.randn(1, 512)
        return train(arm, optimizer, lambda: layer(x).square().mean())

    assert 4 * MIB <= peaks(setup)["fp32"] < 6.5 * MIB  # and temporaries of the update


def profiled(profiler, seen):
    """A step inside a profiler of the user's, and how many events of its own that one has."""

    def setup(arm):
        layer = nn.Linear(64, 64)
        optimizer = torch.optim.SGD(layer.parameters())
        inner = train(arm, optimizer, lambda: layer(torch.ones(1, 64)).square().mean())

        def step():
            with profiler() as own:
                loss = inner()
            events = own.events() if hasattr(own, "events") else own.function_events
            seen.append(sum(event.name == "aten::linear" for event in events))
            return loss

        return step

    return setup


PROFILERS = {
    "torch.profiler": lambda: torch.profiler.profile(activities=[ProfilerActivity.CPU]),
    "with memory": lambda: torch.profiler.profile(
        activities=[ProfilerActivity.CPU], profile_memory=True
    ),
    "autograd's": lambda: torch.autograd.profiler.profile(use_kineto=True),
}


@pytest.mark.parametrize("name", PROFILERS)
def test_a_step_with_a_profiler_of_its_own_has_no_peak_rather_than_a_wrong_one(name) -> None:
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions of torch warn of what the user's asks for
        report = measure(profiled(PROFILERS[name], seen), min_memory_reduction=0.1)
    gate = report.gate("memory_reduction")
    assert gate.verdict == "not_gated"
    assert "torch.profiler" in gate.reason
    assert "the step has one of its own" in gate.reason
    assert report.amp.peak_bytes is None
    assert all(seen)  # beside ours as without it
    assert not torch.autograd._profiler_enabled()


def test_a_profiler_that_setup_starts_and_the_last_step_stops_is_left_to_run() -> None:
    seen = []

    def setup(arm):
        own = PROFILERS["torch.profiler"]()
        own.start()

        def stop():
            own.stop()
            seen.append(sum(event.name == "aten::ones" for event in own.events()))

        arm.on_teardown(stop)
        return lambda: float(torch.ones(8)[0])

    bench = workbench(setup)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run, _ = parity.run(bench, "amp", 5)
    assert run.peak_bytes is None
    assert run.peak_unknown
    assert seen == [5]


def test_a_profiler_from_before_the_test_goes_on_and_ours_does_not_start() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with PROFILERS["torch.profiler"]() as own:
            run, _ = parity.run(workbench(lambda _: lambda: float(torch.ones(8)[0])), "amp", 5)
    assert run.peak_unknown
    assert sum(event.name == "aten::ones" for event in own.events()) == 5


def test_the_warnings_of_our_own_profiler_are_not_the_user_s(monkeypatch) -> None:
    monkeypatch.setattr(profiler, "_WARNINGS_SHOWN", set(), raising=False)
    start = profiler.profile.start

    def warned(self):
        warnings.warn("Profiler clears events at the end of each cycle", stacklevel=1)
        start(self)

    monkeypatch.setattr(profiler.profile, "start", warned)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert peaks(lambda _: lambda: float(torch.ones(FLOATS)[0]))["fp32"] >= MIB


def test_what_was_there_before_the_build_is_not_counted() -> None:
    before = torch.ones(32 * FLOATS)

    def setup(arm):
        return lambda: float((before[:FLOATS] * 2)[0])

    assert peaks(setup)["fp32"] == pytest.approx(MIB, rel=0.01)


def test_memory_from_before_that_the_arm_frees_does_not_hide_its_own() -> None:
    before = [torch.ones(16 * FLOATS)]

    def setup(arm):
        def step():
            before.clear()
            return float(torch.ones(2 * FLOATS)[0])

        return step

    assert peaks(setup, steps=1)["fp32"] == pytest.approx(2 * MIB, rel=0.01)


def test_a_block_at_the_address_of_one_from_an_earlier_profile_is_not_mistaken_for_it() -> None:
    """torch remembers the sizes of blocks that it saw come under a profiler and go without one."""
    held = []
    with peak_memory(Device(CPU)) as earlier:
        held.extend(torch.ones(10_000) for _ in range(50))
        earlier.stop()
    known = {block.data_ptr() for block in held}
    held.clear()
    small = [torch.ones(9_000) for _ in range(200)]  # fits where those were
    same_place = [block for block in small if block.data_ptr() in known]
    assert same_place
    with peak_memory(Device(CPU)) as now:
        small.clear()
        same_place.clear()
        held.append(torch.ones(2 * FLOATS))
        assert now.stop().peak_bytes == 2 * MIB


def test_looking_at_weights_and_inputs_adds_nothing() -> None:
    """Digests go piece by piece: the sum of bytes as int64 would take eight times the images."""
    images = torch.zeros(8 * MIB, dtype=torch.uint8)

    def setup(arm):
        layer = nn.Linear(1, 1)
        torch.optim.SGD(layer.parameters(), lr=0.1)
        first = nn.Identity()

        def step():
            held = images.clone()
            return float(first(held)[0])

        return step

    assert peaks(setup)["fp32"] < 12 * MIB


def pointwise(arm):
    layer = nn.Linear(1, 256)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    x = torch.linspace(-1, 1, 2048).unsqueeze(1)

    def loss_of():
        h = layer(x)
        for _ in range(20):
            h = nn.functional.leaky_relu(h, 0.9)
        return h.mean()

    return train(arm, optimizer, loss_of)


def test_repeated_readings_agree() -> None:
    readings = [peaks(pointwise) for _ in range(4)]
    for name in ("fp32", "amp"):
        assert max(r[name] for r in readings) <= 1.005 * min(r[name] for r in readings)


def test_pointwise_operations_take_half_the_memory_under_amp() -> None:
    report = measure(pointwise, min_memory_reduction=0.45, steps=3)
    assert report.gate("memory_reduction").verdict == "pass"
    assert report.memory_reduction == pytest.approx(0.5, abs=0.05)


def test_a_reduction_that_is_not_reached_fails_with_both_peaks() -> None:
    report = measure(pointwise, min_memory_reduction=0.6, steps=3)
    gate = report.gate("memory_reduction")
    assert report.verdict == "fail"
    assert gate.verdict == "fail"
    assert "MiB -> " in gate.reason


def test_an_arm_that_raises_leaves_no_profiler_running() -> None:
    def setup(arm):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        parity.run(workbench(setup), "amp", 3)
    assert not torch.autograd._profiler_enabled()

    def failing(arm):
        def step():
            raise ZeroDivisionError

        return step

    with pytest.raises(ZeroDivisionError):
        parity.run(workbench(failing), "amp", 3)
    assert not torch.autograd._profiler_enabled()


def test_a_device_without_a_counter_has_no_peak() -> None:
    class Uncounted(Device):
        is_accelerator = True
        module = torch.cpu  # has no max_memory_allocated

    with peak_memory(Uncounted(CPU)) as memory:
        peak = memory.stop()
    assert (peak.peak_bytes, peak.reserved_bytes) == (None, None)


ORIGINALS = """
import pytest, torch

@pytest.fixture
def model():
    return torch.nn.Linear(1024, 1024, bias=False)       # 4 MiB

@pytest.fixture
def ballast():
    return torch.ones({ballast} * 2**18)

@pytest.fixture
def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)

@pytest.mark.amp
def test_step(model, optimizer{request}):
    return model(torch.ones(1, 1024)).square().mean()
"""


@pytest.mark.parametrize(("ballast", "request_", "more"), [(0, "", 0), (64, ", ballast", 64)])
def test_only_the_copies_of_a_body_s_fixtures_are_counted(
    pytester, ballast, request_, more
) -> None:
    pytester.makepyfile(ORIGINALS.format(ballast=ballast, request=request_))
    result = pytester.runpytest("--amp-static", "--amp-steps=3", "--amp-json=amp.json")
    result.assert_outcomes(passed=1)
    [test] = json.loads((pytester.path / "amp.json").read_text())["tests"]
    # the model and its gradient, as by hand: no second model, and nothing of what looks on
    assert test["arms"]["fp32"]["peak_bytes"] == pytest.approx((8 + more) * MIB, rel=0.01)


class Allocator:
    """Counts as torch.cuda does; what is let go of is at once free."""

    def __init__(self) -> None:
        self.held = self.most = 0
        self.tuned = self.touched = False

    def take(self, mib: int) -> None:
        self.held += mib * MIB
        self.most = max(self.most, self.held)

    def give(self, mib: int) -> None:
        self.held -= mib * MIB

    def memory_allocated(self, _: object = None) -> int:
        return self.held

    max_memory_reserved = memory_reserved = memory_allocated

    def max_memory_allocated(self, _: object = None) -> int:
        return self.most

    def reset_peak_memory_stats(self, _: object = None) -> None:
        self.most = self.held

    def synchronize(self, *_: object) -> None: ...

    def empty_cache(self) -> None: ...


class Counted(Device):
    """An accelerator with such an allocator, on which everything runs on the CPU."""

    is_accelerator = True

    def __init__(self, allocator: Allocator) -> None:
        super().__init__(CPU)
        self.allocator = allocator

    @property
    def module(self):
        return self.allocator

    def synchronize(self) -> None: ...

    def rng_state(self) -> None: ...

    def manual_seed(self, seed: int) -> None: ...


def counted(allocator: Allocator, kept: int = 8):
    """Whoever steps first tries kernels in 100 MiB, and leaves a library's `kept` MiB for good."""

    def setup(arm):
        model = 6 if arm.enabled else 10
        allocator.take(model)
        arm.on_teardown(lambda: allocator.give(model))

        def step():
            if not allocator.touched:
                allocator.touched = True
                allocator.take(kept)
            if not allocator.tuned:
                allocator.tuned = True
                allocator.take(100)
                allocator.give(100)
            allocator.take(4)
            allocator.give(4)
            return 1.0

        return step

    return setup


@pytest.mark.parametrize("order", [("fp32", "amp"), ("amp", "fp32")])
def test_the_order_of_the_arms_does_not_show_in_their_peaks(order) -> None:
    allocator = Allocator()
    bench = workbench(counted(allocator), device=Counted(allocator))
    found = {name: parity.run(bench, name, 4)[0].peak_bytes for name in order}
    assert found == {"fp32": 14 * MIB, "amp": 10 * MIB}


def test_what_is_too_much_for_a_library_to_keep_is_the_user_s() -> None:
    allocator = Allocator()
    bench = workbench(counted(allocator, kept=500), device=Counted(allocator))
    assert parity.run(bench, "amp", 4)[0].peak_bytes == 510 * MIB


@pytest.mark.parametrize(("steps", "peak"), [(1, 3), (2, 1), (3, 1), (6, 1)])
def test_the_first_steps_are_left_out_of_a_cpu_s_peak_where_more_follow(steps, peak) -> None:
    def setup(arm):
        taken = []

        def step():
            torch.ones((1 if taken else 3) * 2**18)
            taken.append(1)
            return 1.0

        return step

    found = parity.run(workbench(setup), "fp32", steps)[0].peak_bytes
    assert found == pytest.approx(peak * MIB, rel=0.01)


def test_beside_a_gpu_only_on_the_cpu_count() -> None:
    """There the profiler tells of the GPU's runtime and its allocations, too, and may nest them."""

    def allocation(start_ns: int, size: int, device: str = "cpu") -> Any:
        block = SimpleNamespace(ptr=7 + abs(size), alloc_size=size, device=torch.device(device))
        return event(start_ns, "[memory]", block)

    def event(start_ns: int, name: str, fields: Any, children: Any = ()) -> Any:
        return SimpleNamespace(
            start_time_ns=start_ns, name=name, extra_fields=fields, children=list(children)
        )

    first, second, freed = allocation(10, 100), allocation(30, 50), allocation(40, -50)
    on_the_gpu = allocation(35, 10**6, "cuda")
    runtime = event(20, "cudaMalloc", object(), [second, on_the_gpu])
    launch = event(15, "cudaLaunchKernel", object())
    found = _on_the_cpu([first, launch, runtime, freed])
    assert found == [(10, 107, 100), (30, 57, 50), (40, 57, -50)]


def test_allocations_at_one_moment_keep_their_order() -> None:
    cpu = torch.device("cpu")
    blocks = [SimpleNamespace(device=cpu, ptr=n, alloc_size=64) for n in range(4)]
    events = [
        SimpleNamespace(start_time_ns=5, name="[memory]", extra_fields=block, children=[])
        for block in blocks
    ]
    outer = SimpleNamespace(
        start_time_ns=1, name="aten::mm", extra_fields=None, children=events[1:3]
    )
    found = _on_the_cpu([events[0], outer, events[3]])
    assert [place for _, place, _ in found] == [0, 1, 2, 3]
