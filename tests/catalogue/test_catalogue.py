"""Each faulty step raises its code, and no other error; each healthy twin raises nothing."""

from __future__ import annotations

import pytest

from tests.catalogue.registry import Step, load
from tests.laboratory import codes

STEPS = load()


def named(step: Step) -> str:
    return f"{step.code}-{step.name}"


@pytest.mark.parametrize("step", [s for s in STEPS if s.faulty], ids=named)
def test_a_faulty_step_raises_its_code_and_no_other_error(step: Step) -> None:
    report = step.measured()
    assert step.code in codes(report)
    others = [f for f in report.findings if f.stands and f.code != step.code]
    assert [str(finding) for finding in others] == []


@pytest.mark.parametrize("step", [s for s in STEPS if not s.faulty], ids=named)
def test_a_healthy_twin_raises_nothing(step: Step) -> None:
    report = step.measured()
    assert [str(f) for f in report.findings if f.code not in step.may_warn] == []
    assert report.verdict == "pass"
