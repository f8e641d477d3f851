"""Each faulty step raises its code, and no other error; each healthy twin raises nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_amp.codes import CODES
from pytest_amp.judge.case import Case
from pytest_amp.rules.registry import RULES
from tests.catalogue.__main__ import table
from tests.catalogue.registry import Step, load
from tests.helpers.lab import codes

STEPS = load()
# What no line does.
UNPLACED = {
    "steps left out where the scaled norm is large",
    "a loss that another scaler scaled",  # whichever of its lines is wrong
}
README = Path(__file__).parent / "README.md"


def those(*, faulty: bool) -> list[object]:
    return [
        pytest.param(
            step,
            id=f"{step.code}-{step.name}",
            marks=pytest.mark.skipif(not step.runs_here, reason=f"needs {step.on}"),
        )
        for step in STEPS
        if step.faulty is faulty
    ]


@pytest.mark.parametrize("step", those(faulty=True))
def test_a_faulty_step_raises_its_code_and_no_other_error(step: Step) -> None:
    report = step.measured()
    assert step.code in codes(report)
    others = [f for f in report.findings if f.stands and f.code != step.code]
    assert [str(finding) for finding in others] == []
    for each in report.findings:
        assert bool(each.location) is not bool(each.no_location), each
        has_place = CODES[each.code].placeless is None and step.name not in UNPLACED
        assert bool(each.location) is has_place, each
        if each.location:
            assert each.location.startswith(("tests/catalogue/", "tests/helpers/")), each


def marked(setup: Callable[..., object]) -> set[str]:
    """The lines of a step and of the helpers beside it that are marked as being at fault."""
    source, first = inspect.getsourcelines(setup)
    file = Path(inspect.getfile(setup)).relative_to(Path.cwd()).as_posix()
    return {f"{file}:{first + n}" for n, line in enumerate(source) if "# here" in line}


@pytest.mark.parametrize(
    "step", [each for each in STEPS if each.faulty and each.runs_here and marked(each.setup)],
    ids=lambda step: step.name,
)  # fmt: skip
def test_a_faulty_step_is_placed_at_a_marked_line(step: Step) -> None:
    places = {f.location for f in step.measured().findings if f.code == step.code}
    assert places <= marked(step.setup)


@pytest.mark.parametrize("step", those(faulty=False))
def test_a_healthy_twin_raises_nothing(step: Step) -> None:
    report = step.measured()
    assert [str(f) for f in report.findings if f.code not in step.may_warn] == []
    assert report.verdict == "pass" or not step.gates


@pytest.mark.parametrize("code", [rule.code for rule in RULES if rule.of is Case])
def test_each_rule_has_three_of_both_kinds(code: str) -> None:
    mine = [step.faulty for step in STEPS if step.code == code]
    assert mine.count(True) >= 3
    assert mine.count(False) >= 3


def test_its_readme_shows_the_table_of_these_steps() -> None:
    """The figures are of a run by hand; the rules and how many steps each has are held here."""
    shown = README.read_text("utf-8")
    for line in table(lambda step: step.faulty if step.runs_here else None):
        if "not run" not in line:
            assert line.rstrip() in shown or line.startswith("all"), "python -m tests.catalogue"
