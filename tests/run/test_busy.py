"""How long an accelerator works: overlapping kernels count once, and annotations not at all."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pytest_amp.run.busy import busy_s, covered
from pytest_amp.run.device import Device
from tests.laboratory import CPU


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
