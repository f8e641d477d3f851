"""How long an accelerator works: overlapping kernels count once, and annotations not at all."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import profiler

from pytest_amp.lab.machine.device import Device
from pytest_amp.lab.watch import kernel_time
from pytest_amp.lab.watch.kernel_time import busy_s, covered
from tests.helpers.lab import CPU, SimulatedDevice, measure


def event(start, end, kind="CUDA", annotation=False):
    return SimpleNamespace(
        device_type=SimpleNamespace(name=kind),
        is_user_annotation=annotation,
        time_range=SimpleNamespace(start=start, end=end),
    )


@pytest.mark.parametrize(
    ("events", "microseconds"),
    [
        ([event(0, 10), event(20, 25)], 15),
        ([event(20, 25), event(0, 10)], 15),
        ([event(0, 10), event(5, 12)], 12),
        ([event(0, 10), event(2, 3), event(4, 11)], 11),
        ([event(0, 10), event(0, 100, "CPU")], 10),
        ([event(0, 10), event(0, 100, annotation=True)], 10),
        ([event(5, 5)], 0),
    ],
)
def test_what_events_cover(events, microseconds) -> None:
    assert covered(events) == pytest.approx(microseconds / 1e6)


def test_without_any_event_of_the_device_nothing_is_known() -> None:
    assert covered([]) is None
    assert covered([event(0, 9, "CPU")]) is None


def test_a_cpu_is_not_asked_and_no_step_is_run() -> None:
    def step():
        raise AssertionError

    assert busy_s(Device(CPU), step) is None


class Accelerated(Device):
    """A CPU that says it is an accelerator."""

    is_accelerator = True

    def synchronize(self) -> None: ...


def test_a_step_with_a_profiler_of_its_own_is_not_told_of() -> None:
    inner = []

    def step() -> None:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as own:
            torch.ones(3).sum()
        inner.append(len(own.events()))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert busy_s(Accelerated(torch.device("cpu")), step) is None
    assert not torch._C._autograd._profiler_enabled()


def test_a_profiler_that_runs_already_is_left_alone() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as outer:
        assert busy_s(Accelerated(torch.device("cpu")), lambda: torch.ones(3).sum()) is None
        torch.ones(3).sum()
    assert outer.events()


def test_warnings_that_are_errors_do_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "_WARNINGS_SHOWN", set(), raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        busy_s(Accelerated(torch.device("cpu")), lambda: torch.ones(3).sum())


@pytest.mark.parametrize(("min_speedup", "asked"), [(None, False), (1.5, False), (3.0, True)])
def test_it_is_asked_where_a_speed_gate_is_not_passed(
    monkeypatch: pytest.MonkeyPatch, min_speedup: float | None, asked: bool
) -> None:
    device, calls = SimulatedDevice(), []
    monkeypatch.setattr(kernel_time, "of_amp", lambda bench, _: calls.append(bench.steps))
    report = measure(
        device.steps(0.02, 0.01), device, static=False, min_speedup=min_speedup, max_loss_diff=None
    )
    assert report.gate("speedup").verdict == {None: "not_gated", 1.5: "pass"}.get(
        min_speedup, "fail"
    )
    assert len(calls) == asked
