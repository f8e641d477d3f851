"""The experiment outside of pytest: the same report, and clear errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import pytest_amp
from pytest_amp.errors import AmpError
from tests.helpers import lab

ROOT = Path(__file__).parents[2]


def setup(arm):
    model = torch.nn.Linear(16, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(8, 16)
    return lab.train(arm, optimizer, lambda: F.mse_loss(model(x), x))


def test_it_is_the_report_of_a_test() -> None:
    ours = pytest_amp.measure(setup, static=True, steps=8, policy="native")
    theirs = lab.measure(setup)
    assert ours.nodeid == f"{__name__}::setup"
    assert ours.verdict == theirs.verdict == "pass"
    assert ours.amp.losses == theirs.amp.losses
    assert ours.coverage == theirs.coverage == 1.0


def test_gates_are_judged_and_not_asserted() -> None:
    report = pytest_amp.measure(setup, static=True, min_memory_reduction=0.99)
    assert report.verdict == "fail"
    assert not report.checked
    with pytest.raises(pytest_amp.AmpRegression, match="memory_reduction"):
        report.check()


def test_without_static_it_times() -> None:
    report = pytest_amp.measure(setup, steps=2, max_time=0.05)
    assert report.speedup is not None
    assert report.speedup.pair_ratios


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"min_speedpu": 1},
            r"unknown setting 'min_speedpu' \(did you mean min_speedup\?\)",
        ),
        ({"compare": "newest"}, "compare is a setting of pytest runs, which measure"),
        ({"strict": "all"}, "strict is a setting of pytest runs, which measure"),
        ({"min_speedup": "nan"}, "min_speedup: 'nan' is not a ratio"),
    ],
)
def test_a_setting_that_is_not_valid_is_named(given, said) -> None:
    with pytest.raises(ValueError, match=said):
        pytest_amp.measure(setup, **given)


def test_what_is_no_setup_is_named() -> None:
    with pytest.raises(AmpError, match="takes a function of the arm, not a str"):
        pytest_amp.measure("setup")  # type: ignore[arg-type]


def test_what_a_rule_knows_of_an_exception_is_a_note_on_it() -> None:
    def broken(arm):
        model = torch.nn.Linear(16, 16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        kept = torch.zeros(8, 16)

        def loss():
            kept.index_put((torch.arange(8),), model(torch.randn(8, 16)))
            return model(torch.randn(8, 16)).sum()

        return lab.train(arm, optimizer, loss)

    with pytest.raises(RuntimeError) as caught:
        pytest_amp.measure(broken, static=True, policy="native")
    assert any("AMP109" in note for note in caught.value.__notes__)


def test_pytest_is_not_imported() -> None:
    example = (ROOT / "docs/how-to/measure-in-a-script.md").read_text()
    code = example.partition("```python\n")[2].partition("```")[0]
    code = code.replace("max_time=10", "static=True")
    code += "import sys; assert not {'pytest', '_pytest'} & set(sys.modules)\n"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("pass\nverdict: pass")
