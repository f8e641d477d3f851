"""`pytest-amp bisect`: the lines and modules that have to stay in float32, and how to keep them."""

from __future__ import annotations

import pytest

from pytest_amp.cli import bisect

NET = """
import pytest, torch
import torch.nn.functional as F
from torch import nn

class Scale(nn.Module):
    def forward(self, x):
        {scale}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), Scale() if n in (2, 5) else nn.Identity(), nn.ReLU())
            for n in range(8)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)
"""
BY_SUBTRACTION = """
        # a variance by subtraction, of what is far from zero
        x = x + 50
        spread = (x * x).mean(-1, keepdim=True) - x.mean(-1, keepdim=True) ** 2
        return (x - 50) / (spread.abs() + 0.1).sqrt()
"""
# A sum of a loss function that overflows, behind a module that would help as well.
DICE = """
import torch

def dice(probability, target):
    overlap = (probability * target).sum()
    return 1 - overlap / (probability + target).sum().clamp(min=1)

def test_step(amp_benchmark):
    def setup(arm):
        model = torch.nn.Conv2d(3, 1, 3, padding=1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x = torch.randn(1, 3, 384, 384)
        y = (x.mean(1, keepdim=True) > -2).float()
        def step():
            optimizer.zero_grad()
            with arm.autocast():
                probability = model(x).sigmoid()
                loss = dice(probability, y.to(probability.dtype))
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss
        return step
    amp_benchmark(setup)
"""
OVERFLOWING = """
        # squares beyond float16's range, and a result within it
        x = x + 300
        return (x - 300) / ((x * x).mean(-1, keepdim=True) / 90000).sqrt() * 3
"""
SETUP_OF_ITS_OWN = """
def test_step(amp_benchmark):
    def setup(arm):
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x, y = torch.randn(32, 8), torch.randint(4, (32,))
        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.cross_entropy(model(x).float(), y)
            loss.backward()
            optimizer.step()
            return loss
        return step
    result = amp_benchmark(setup)
    assert result.verdict == "pass"

def test_of_something_else():
    pass

@pytest.mark.amp(max_loss_diff=None)
def test_without_a_parity_gate(amp_benchmark):
    amp_benchmark(lambda arm: lambda: 1.0)

@pytest.mark.amp(candidate="bf16-true")
def test_without_autocast(amp_benchmark):
    amp_benchmark(lambda arm: lambda: 1.0)
"""
BODY_IS_THE_STEP = """
@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net()

@pytest.fixture
def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)

@pytest.mark.amp
def test_step(model, optimizer):
    torch.manual_seed(1)
    return F.cross_entropy(model(torch.randn(32, 8)).float(), torch.randint(4, (32,)))
"""


@pytest.fixture
def bisected(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Bisect a test of a file; the exit code and what was said."""
    monkeypatch.chdir(pytester.path)

    def run(source, nodeid="test_it.py::test_step", *more):
        pytester.makepyfile(test_it=source)
        said = []
        code = bisect.main(nodeid, ["-p", "no:asyncio", "--amp-steps=8", *more], said.append)
        return code, "\n".join(said)

    return run


def net(scale=BY_SUBTRACTION):
    return NET.format(scale=scale.strip())


@pytest.mark.parametrize("form", [BODY_IS_THE_STEP, SETUP_OF_ITS_OWN], ids=["body", "setup"])
def test_the_planted_line_is_found_and_the_fix_is_printed(bisected, form) -> None:
    more = ("--amp-dtype=float16", "--amp-steps=20")
    code, said = bisected(net(OVERFLOWING) + form, "test_it.py::test_step", *more)
    assert code == bisect.FOUND
    assert "bisecting test_it.py::test_step on cpu in float16" in said
    *_, line, _, region, source = said.splitlines()
    assert line.startswith("  test_it.py:8  (add)")
    assert region.strip() == 'with torch.autocast("cpu", enabled=False):'
    assert source.strip() == "x = x + 300"  # which keeps nothing of x in float16
    assert "loss_diff goes from" in said


def test_a_line_of_a_loss_function_is_preferred_to_the_module_that_feeds_it(bisected) -> None:
    code, said = bisected(DICE, "test_it.py::test_step", "--amp-dtype=float16")
    assert code == bisect.FOUND
    found = [line for line in said.splitlines() if line.startswith("  test_it.py")]
    assert {line.split()[0] for line in found} == {"test_it.py:4", "test_it.py:5"}
    assert "Conv2d" not in said


def test_pasting_the_fix_makes_the_test_pass(pytester: pytest.Pytester, bisected) -> None:
    fixed = """
        x = x.float()
        with torch.autocast("cpu", enabled=False):
            x = x + 50
            spread = (x * x).mean(-1, keepdim=True) - x.mean(-1, keepdim=True) ** 2
            return (x - 50) / (spread.abs() + 0.1).sqrt()
"""
    pytester.makepyfile(test_it=net() + BODY_IS_THE_STEP)
    pytester.runpytest("--amp-static").assert_outcomes(failed=1)
    code, said = bisected(net(fixed) + BODY_IS_THE_STEP)
    assert (code, "nothing to do: the losses agree as it is (1 trial" in said) == (
        bisect.FOUND,
        True,
    )
    pytester.runpytest("--amp-static").assert_outcomes(passed=1)


def test_each_trial_is_printed_as_it_ends(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(pytester.path)
    pytester.makepyfile(test_it=net("return x") + BODY_IS_THE_STEP)
    assert bisect.main("test_it.py::test_step", [], print) == bisect.FOUND
    heading, number, trial, conclusion = capsys.readouterr().out.splitlines()
    assert heading == "bisecting test_it.py::test_step on cpu in bfloat16"
    assert "modules, max_loss_diff 2.0%" in number
    assert trial.startswith("  trial  1  nothing in float32")
    assert conclusion.startswith("nothing to do: the losses agree as it is")


def test_what_no_precision_explains_is_said(bisected) -> None:
    loss = "F.cross_entropy(model(x).float(), y)"
    outside = net("return x") + SETUP_OF_ITS_OWN.replace(
        loss, f"(1.5 if arm.enabled else 1.0) * {loss}"
    )
    code, said = bisected(outside)
    assert code == bisect.NO_HELP
    assert "not even all lines and modules in float32 make the losses agree (2 trials" in said


@pytest.mark.parametrize(
    ("nodeid", "message"),
    [
        ("test_it.py::test_nowhere", "did not run as one amp test"),
        ("test_it.py::test_of_something_else", "did not run as one amp test"),
        ("test_it.py::test_without_a_parity_gate", "max_loss_diff is off for this test"),
        ("test_it.py::test_without_autocast", "has none: compare with autocast, as in --amp-cand"),
    ],
)
def test_what_cannot_be_bisected_is_a_usage_error(bisected, nodeid, message) -> None:
    code, said = bisected(net("return x") + SETUP_OF_ITS_OWN, nodeid)
    assert code == bisect.USAGE
    assert message in said


def test_the_tests_own_settings_hold_and_more_can_be_given(bisected) -> None:
    marked = BODY_IS_THE_STEP.replace(
        "@pytest.mark.amp", "@pytest.mark.amp(steps=4, dtype='float16')"
    )
    source = net("return x") + marked
    _, said = bisected(source, "test_it.py::test_step", "--amp-override", "max_loss_diff=9")
    assert "on cpu in float16" in said
    assert "max_loss_diff 900%" in said
    assert "nothing to do: the losses agree as it is (1 trial, 14 steps" in said


def test_a_module_of_torchs_own_is_kept_where_it_is_called(bisected) -> None:
    """A product of which the terms cancel: reduced precision keeps nothing of the difference."""
    cancels = """
        self.even = nn.Linear(8, 8)
        with torch.no_grad():
            self.even.weight.copy_(300 * torch.ones(8, 8).cumsum(0))
            self.even.bias.copy_(-1200 * torch.ones(8).cumsum(0))
"""
    call = """
    def cancelled(self, small, x):
        even = self.even(small)
        return self.head(x + even)
"""
    source = net("return x").replace("        self.head", f"{cancels}        self.head")
    source = source.replace("self.head(x)", "self.cancelled(x * 0 + 0.5 + 1e-3 * x, x)")
    source = source.replace(
        "    def forward(self, x):\n        for", f"{call}\n    def forward(self, x):\n        for"
    )
    code, said = bisected(source + BODY_IS_THE_STEP)
    assert code == bisect.FOUND
    assert "  even  (Linear, torch/nn/modules/linear.py:" in said
    assert "    where it is called, test_it.py:" in said
    assert "          y = self.even(x.float())" in said
