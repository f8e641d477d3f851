"""The catalogue on a CPU that follows CUDA's rules: what is found there, and what is no fault.

CUDA's autocast runs sums, powers, norms, softmax and losses in float32 where a CPU's runs them in
the reduced dtype, and refuses binary cross entropy. Faults that rest on these are none there.
"""

from __future__ import annotations

from typing import Any

import pytest

from pytest_amp.lab.machine.device import choose
from pytest_amp.results.report import AmpReport
from tests.catalogue.registry import Step, load
from tests.helpers.lab import attempt, codes

# What CUDA computes in float32, by the name of the faulty step.
IN_FLOAT32 = {
    "a dice loss over many pixels": "its sums",
    "a root whose epsilon rounds to zero": "its squares, and with them the sum and the root",
    "a norm whose squares overflow": "its squares, and with them the sum and the root",
    "a policy of probabilities in bfloat16": "softmax, so that the clamp is float32's",
}
REFUSED = "cross entropy of probabilities"
# Shapes that only tensor cores mind, which the policy stands for.
ODD_SIZES = {
    "odd sizes on a cpu", "attention with sharp scores", "a diffusion step",
    "a float32 time beside what is cast up for it",
}  # fmt: skip
STEPS = [step for step in load() if step.on == "cpu" and step.options.get("static", True)]


def measured(step: Step) -> AmpReport:
    usual: dict[str, Any] = {"device": choose("cpu"), "steps": 6, "dtype": "bfloat16"}
    return attempt(step.setup, **{**usual, **step.options, "policy": "cuda"})


def named(*names: str) -> list[object]:
    found = [step for step in STEPS if step.name in names]
    assert len(found) == len(names)
    return [pytest.param(step, id=step.name) for step in found]


@pytest.mark.parametrize("step", named(*IN_FLOAT32))
def test_what_cuda_runs_in_float32_is_silent(step: Step) -> None:
    assert step.faulty
    report = measured(step)
    assert [str(each) for each in report.findings] == []
    assert report.verdict == "pass"


@pytest.mark.parametrize("step", named(REFUSED))
def test_what_cuda_refuses_is_told_with_its_line(step: Step) -> None:
    (finding,) = measured(step).findings
    assert finding.code == "AMP109"
    assert finding.location.startswith("tests/catalogue/backward.py:")
    assert "binary_cross_entropy_with_logits" in finding.message


@pytest.mark.parametrize("step", named(*ODD_SIZES))
def test_sizes_that_tensor_cores_mind_are_told(step: Step) -> None:
    assert not step.faulty
    assert {each.code for each in measured(step).findings} == {"AMP405"}


# The others, and the healthy twins of these, are asked by a CPU's own rules alone, to save time.
ALIKE = [
    pytest.param(step, id=f"{step.code}-{step.name}")
    for step in STEPS
    if step.name not in {*IN_FLOAT32, *ODD_SIZES, REFUSED}
    and step.options.get("dtype") == "float16"
    and step.faulty
]


@pytest.mark.parametrize("step", ALIKE)
def test_every_other_fault_in_float16_is_found_as_on_a_cpu(step: Step) -> None:
    assert step.code in codes(measured(step))
