"""A user's first steps: mark a test, run it, and read the verdict."""

from __future__ import annotations

import pytest

STEP = """
import pytest, torch
import torch.nn.functional as F

@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))

@pytest.fixture
def optimizer(model):
    return torch.optim.AdamW(model.parameters())

@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, 8, generator=generator), torch.randint(0, 4, (16,), generator=generator)

@pytest.mark.amp
def test_step(model, optimizer, batch):
    inputs, targets = batch
    return F.cross_entropy(model(inputs), targets)
"""


def test_a_healthy_step_passes_and_is_in_the_table(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(STEP)
    result = pytester.runpytest("-m", "amp", "--amp-static")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*= pytest-amp =*", "*test_step*PASS", "1 passed"])


def test_a_gate_that_is_missed_fails_and_says_by_how_much(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(STEP)
    result = pytester.runpytest("-m", "amp", "--amp-min-speedup=50", "--amp-max-time=5")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["speedup *x [[]*[]] is below 50.0x", "*speedup * FAILED * below 50.0x by *% (* pairs of *"]
    )
