"""A project whose steps take exactly the time that they are told, on a clock that they move."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_amp.lab.machine.device import Device


class Clock:
    """The clock that `Device.now` reads if pytest runs inside this process."""

    time_s = 0.0


CLOCK = Clock()

# In another process there is no such clock, so the steps really sleep.
SLEEPING = """
import os, sys, time
import pytest, torch
import torch.nn.functional as F

FP32_S, AMP_S = 0.004, 0.002

def spend(seconds):
    project = sys.modules.get("tests.helpers.clock")
    if project is None:
        time.sleep(seconds)
    else:
        project.CLOCK.time_s += seconds

@pytest.mark.amp
def test_step(amp_benchmark):
    def setup(arm):
        model = torch.nn.Linear(8, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        inputs, targets = torch.ones(4, 8), torch.arange(4)
        slower = float(os.environ.get("AMP_SLOWER", "1"))
        def step():
            spend(AMP_S * slower if arm.enabled else FP32_S)
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            return loss
        return step
    amp_benchmark(setup)
"""

TIMED = ("--amp-steps=2", "--amp-warmup=1", "--amp-max-time=0.6", "-p", "no:cacheprovider")


@pytest.fixture
def sleeping(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setattr(Device, "now", lambda _: CLOCK.time_s)
    pytester.makepyfile(test_it=SLEEPING)
    return pytester


def stored(project: pytest.Pytester) -> list[Path]:
    """Return the saved runs, oldest first."""
    return sorted((project.path / ".benchmarks").glob("*/*.json"))


def entries(path: Path) -> dict[str, Any]:
    """Return the benchmarks in a file by name."""
    return {each["name"]: each for each in json.loads(path.read_text())["benchmarks"]}
