"""AMP204: torch's own exceptions keep their type and their place, and are explained."""

from __future__ import annotations

import pytest

from tests.helpers.project import CONFTEST, measure

STEP = """
import torch
import torch.nn.functional as F

def test_step(amp_benchmark):
    def setup(arm):
        model = torch.nn.Linear(8, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        inputs, targets = torch.ones(4, 8), torch.arange(4)
        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.cross_entropy(model(inputs), targets)
            arm.scaler.scale(loss).backward()
            arm.scaler.unscale_(optimizer)
            arm.scaler.unscale_(optimizer)
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss
        return step
    amp_benchmark(setup)
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_it=STEP)
    return pytester


def test_a_double_unscale_is_torchs_error_with_a_note_and_a_finding(project) -> None:
    result, reports = measure(project, "--amp-dtype=float16")
    result.assert_outcomes(failed=1)
    report = reports["test_step"]
    assert (report["verdict"], report["error"]["type"]) == ("error", "RuntimeError")
    assert report["error"]["arm"] == "amp"
    [finding] = report["findings"]
    assert (finding["code"], finding["name"]) == ("AMP204", "scaler-protocol")
    line = STEP.splitlines().index("            arm.scaler.unscale_(optimizer)") + 1
    assert finding["location"] == f"test_it.py:{line}"
    result.stdout.fnmatch_lines(
        [
            "*unscale_() has already been called on this optimizer since the last update().",
            f"*AMP204 scaler-protocol (test_it.py:{line}): the gradients would be divided by*",
        ]
    )


STEPPED = """            arm.scaler.unscale_(optimizer)
            arm.scaler.unscale_(optimizer)
            arm.scaler.step(optimizer)
            arm.scaler.update()
"""
SCALED = "arm.scaler.scale(loss).backward()"
# What is at fault, and the line that does it.
FAULTS = {
    "update() before step()": (
        STEP.replace(
            STEPPED,
            "            arm.scaler.update()  # here\n            arm.scaler.step(optimizer)\n",
        )
    ),
    "a loss that is not scaled": (
        STEP.replace(SCALED, "loss.backward()  # here").replace(
            STEPPED, "            arm.scaler.step(optimizer)\n            arm.scaler.update()\n"
        )
    ),
    "gradients that are emptied": (
        STEP.replace(
            STEPPED,
            "            optimizer.zero_grad()  # here\n            arm.scaler.step(optimizer)\n",
        )
    ),
    "a loss that does not reach them": (
        STEP.replace("model(inputs)", "model(inputs) * 0 + torch.ones(4, 4, requires_grad=True)")
        .replace("model(inputs) * 0", "model(inputs).detach()")
        .replace(STEPPED, "            arm.scaler.step(optimizer)  # here\n")
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_its_place_is_the_line_that_is_at_fault(project, fault) -> None:
    project.makepyfile(test_it=FAULTS[fault])
    result, reports = measure(project, "--amp-dtype=float16")
    result.assert_outcomes(failed=1)
    [finding] = reports["test_step"]["findings"]
    [line] = [i for i, text in enumerate(FAULTS[fault].strip().splitlines(), 1) if "# here" in text]
    assert (finding["code"], finding["location"]) == ("AMP204", f"test_it.py:{line}")


def test_where_it_is_ignored_the_error_stays_and_the_finding_gives_the_reason(project) -> None:
    mark = '@pytest.mark.amp(ignore={"AMP204": "a known fault"})\ndef test_step'
    project.makepyfile(test_it="import pytest" + STEP.replace("def test_step", mark))
    result, reports = measure(project, "--amp-dtype=float16")
    result.assert_outcomes(failed=1)
    [finding] = reports["test_step"]["findings"]
    assert finding["suppressed"] == "a known fault"


def test_an_error_of_the_steps_own_is_left_as_it_is(project) -> None:
    same_words = STEP.replace(
        "            arm.scaler.unscale_(optimizer)\n",
        "            raise RuntimeError('unscale_() has already been called')\n",
    )
    project.makepyfile(test_it=same_words)
    result, reports = measure(project, "--amp-dtype=float16")
    result.assert_outcomes(failed=1)
    assert reports["test_step"]["findings"] == []
    assert "AMP204" not in result.stdout.str()
