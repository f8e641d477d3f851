"""A project whose tests take exactly the time they are told to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

# The steps' time is slept, a thousandth of a second and more, which any machine can.
SLEEPING = """
import os, time
import pytest, torch
import torch.nn.functional as F

FP32_S, AMP_S = 0.004, 0.002

@pytest.mark.amp
def test_step(amp_benchmark):
    def setup(arm):
        model = torch.nn.Linear(8, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        inputs, targets = torch.ones(4, 8), torch.arange(4)
        slower = float(os.environ.get("AMP_SLOWER", "1"))
        def step():
            time.sleep(AMP_S * slower if arm.enabled else FP32_S)
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
def sleeping(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(test_it=SLEEPING)
    return pytester


def stored(project: pytest.Pytester) -> list[Path]:
    """The saved runs, the oldest first."""
    return sorted((project.path / ".benchmarks").glob("*/*.json"))


def entries(path: Path) -> dict[str, Any]:
    """The benchmarks of a file, by name."""
    return {each["name"]: each for each in json.loads(path.read_text())["benchmarks"]}
