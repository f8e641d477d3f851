"""Two models against each other: what is said of them has their names."""

from __future__ import annotations

from pytest_amp.experiment.against import run
from pytest_amp.experiment.job import Job
from pytest_amp.progress import Progress
from pytest_amp.settings.resolved import resolve
from tests.helpers.lab import SimulatedDevice


def test_a_gate_that_stays_open_names_the_model_and_no_arm() -> None:
    device = SimulatedDevice()

    def ours(_):
        def step():
            device.time_s += 0.011 if device.time_s % 0.7 < 0.2 else 0.005  # it sits in modes
            return 1.0

        return step

    def theirs(_):
        def step():
            device.time_s += 0.008
            return 1.0

        return step

    settings = resolve([("cli", {"min_speedup": 1.2, "max_time": 5, "steps": 4})])
    report = run(Job("test_it.py::test", ours, device, settings), Progress(), theirs, "wide")
    reason = report.gate("speedup").reason
    assert report.gate("speedup").verdict == "inconclusive"
    assert "a step of this model takes 5.00 ms or 11.0 ms" in reason
    assert "arm" not in reason
