"""A user's small project, and runs of pytest in it."""

from __future__ import annotations

import json
from typing import Any

import pytest

CONFTEST = """
import pytest, torch
import torch.nn.functional as F

@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.Linear(8, 4)

@pytest.fixture
def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.01)

@pytest.fixture
def batch():
    return torch.ones(4, 8), torch.arange(4)

@pytest.fixture
def setup():
    def setup(arm):
        model = torch.nn.Linear(8, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        inputs, targets = torch.ones(4, 8), torch.arange(4)
        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            return loss
        return step
    return setup
"""

STEP = """
import pytest
import torch.nn.functional as F

@pytest.mark.amp
def test_step(model, optimizer, batch):
    return F.cross_entropy(model(batch[0]), batch[1])
"""

QUICK = ("--amp-static", "--amp-steps=2")
# A speed gate whose budget is spent before its test can decide.
UNDECIDED = ("--amp-min-speedup=1", "--amp-max-time=0.001", "--amp-steps=2")


def read(project: pytest.Pytester) -> dict[str, Any]:
    """Return what --amp-json=amp.json wrote."""
    document: dict[str, Any] = json.loads((project.path / "amp.json").read_text("utf-8"))
    return document


def measure(
    project: pytest.Pytester, *arguments: str, quick: tuple[str, ...] = QUICK
) -> tuple[pytest.RunResult, dict[str, Any]]:
    """Run the project's tests quickly, and read the reports by the tests' names."""
    result = project.runpytest("--amp-json=amp.json", *quick, *arguments)
    reports = {each["nodeid"].partition("::")[2]: each for each in read(project)["tests"]}
    return result, reports


def gate(report: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the gate of that name."""
    found: dict[str, Any] = next(gate for gate in report["gates"] if gate["name"] == name)
    return found
