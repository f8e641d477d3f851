"""Beside the plugins that people use with pytest, a test measures what it measures alone.

The suite below runs in processes of its own, with all of these plugins installed, and with those
combinations of them switched on that people use together.
"""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ET
from typing import Any

import jsonschema
import pytest

from pytest_amp.render.json import schema
from tests.helpers.project import QUICK, STEP, gate, measure, read

TOGETHER = pytest.mark.needs(
    "pytest_asyncio", "pytest_cov", "pytest_html", "pytest_randomly", "pytest_repeat",
    "pytest_rerunfailures", "pytest_rich", "pytest_subtests", "pytest_sugar", "pytest_timeout",
    "xdist",
)  # fmt: skip

SUITE = (
    STEP
    + """
import asyncio
import random

@pytest.mark.amp(min_memory_reduction=0.99)
@pytest.mark.parametrize("case", ["a", "1-2"])
def test_failing(model, optimizer, batch, case):
    return F.cross_entropy(model(batch[0]), batch[1])

@pytest.mark.xfail(strict=True)
@pytest.mark.amp(min_memory_reduction=0.99)
def test_expected(model, optimizer, batch):
    return F.cross_entropy(model(batch[0]), batch[1])

@pytest.mark.skip(reason="later")
def test_skipped(amp_benchmark): ...

class TestOwn:
    @pytest.mark.timeout(300)
    @pytest.mark.xdist_group("there")  # which some versions of pytest append to the test's id
    def test_own(self, amp_benchmark, setup):
        assert amp_benchmark(setup).verdict == "pass"

def test_parts(subtests, amp_benchmark, setup):
    with subtests.test(msg="measured"):
        report = amp_benchmark(setup)
    with subtests.test(msg="covered"):
        assert report.coverage == 1.0

@pytest.mark.parametrize("n", range(3))
def test_ordinary(n):
    assert random.random() < 1

@pytest.mark.asyncio
async def test_async():
    await asyncio.sleep(0)

def test_broken():
    assert False
"""
)
AMP = {
    "test_step": "pass",
    "test_failing[a]": "fail",
    "test_failing[1-2]": "fail",
    "test_expected": "fail",
    "test_skipped": "skipped",
    "TestOwn::test_own": "pass",
    "test_parts": "pass",
}

# Without these, pytest-asyncio warns, and takes only the tests that are marked.
ASYNC = ("-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function")
COV = ("--cov=.", "--cov-branch", "--cov-report=term")
COMBINATIONS = {
    "all installed, nothing asked": (),
    "xdist, coverage, timeouts": ("-n2", *COV, "--timeout=300"),
    "repeated in random order": ("--count=2", "--randomly-seed=7", "--repeat-scope=session"),
    "reruns, timeouts from a thread, sugar, a page": (
        "--reruns=1", "--timeout=300", "--timeout-method=thread", "--force-sugar",
        "--html=page.html", "--self-contained-html",
    ),
    "repeated and rerun by xdist": ("--count=2", "-n1", "--dist=loadgroup", "--reruns=1"),
}  # fmt: skip


def run(project: pytest.Pytester, *arguments: str) -> tuple[pytest.RunResult, dict[str, Any]]:
    """Run a project's tests in a process of their own, and read the JSON report."""
    files = ("--amp-json=amp.json", "--junitxml=junit.xml")
    result = project.runpytest_subprocess(*files, *arguments)
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
    document = read(project)
    jsonschema.validate(document, schema())
    return result, document


def verdicts(document: dict[str, Any], times: int) -> dict[str, set[str]]:
    """Return the verdicts of each test, whatever its repetitions and attempts."""
    found: dict[str, set[str]] = {}
    for test in document["tests"]:
        name = test["nodeid"].partition("::")[2]
        if times > 1:
            name = re.sub(r"(-\d-\d)(?=\]$)|\[\d-\d\]$", "", name)
        found.setdefault(name, set()).add(test["verdict"])
    return found


@TOGETHER
@pytest.mark.slow
@pytest.mark.parametrize("chosen", COMBINATIONS.values(), ids=list(COMBINATIONS))
def test_verdicts_outcomes_and_files_are_those_of_a_run_alone(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, chosen: tuple[str, ...]
) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "-o amp_policy=native")
    project.makepyfile(test_it=SUITE)
    result, document = run(project, *ASYNC, *QUICK, *chosen)
    times = 2 if "--count=2" in chosen else 1
    assert verdicts(document, times) == {name: {verdict} for name, verdict in AMP.items()}
    tries = times * (2 if "--reruns=1" in chosen else 1)
    attempts = sum(tries if name.startswith("test_failing") else times for name in AMP)
    assert len(document["tests"]) == attempts
    totals = ET.parse(project.path / "junit.xml").getroot()[0].attrib
    assert int(totals["failures"]) == 3 * times
    assert "= pytest-amp =" in result.stdout.str()


# Randomness


@pytest.mark.needs("pytest_randomly")
def test_a_test_draws_from_its_own_seed_whatever_seeds_before_it(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:sugar -p no:asyncio -o amp_policy=native")
    project.makepyfile(
        test_it="""
        import random
        import numpy
        import torch

        def test_drawn(amp_benchmark, setup):
            numbers = random.random(), numpy.random.rand(), torch.rand(1).item()
            with open("drawn", "a") as file:
                print(*numbers, file=file)
            amp_benchmark(setup)
        """
    )
    for seed in (1, 2):
        result, _ = measure(project, f"--randomly-seed={seed}")
        result.assert_outcomes(passed=1)
    first, second = (project.path / "drawn").read_text().splitlines()
    assert first == second


# Coverage


@pytest.mark.needs("pytest_cov")
@pytest.mark.slow
def test_coverage_is_complete_and_sees_nothing_of_what_is_timed(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(
        test_it="""
        import sys

        def test_step(amp_benchmark, setup):
            traced = []
            def watched(arm):
                step = setup(arm)
                def one():
                    traced.append(sys.gettrace() is not None)
                    return step()
                return one
            report = amp_benchmark(watched, check=False)
            assert traced[0]
            assert not traced[-1]
            after = sys.gettrace() is not None
            if after:
                after = 1
            assert after
        """
    )
    core = "core = ctrace" if sys.version_info >= (3, 12) else ""  # else nothing may be traced
    project.makefile(".ini", coverage=f"[run]\n{core}\n")
    cov = ("--cov=.", "--cov-report=json:cov.json", "--cov-config=coverage.ini")
    result, document = run(
        project, *cov, "--amp-steps=2", "--amp-max-time=0.05", "--amp-dtype=bfloat16"
    )
    result.assert_outcomes(passed=1)
    lines = json.loads((project.path / "cov.json").read_text())["files"]["test_it.py"]
    assert lines["missing_lines"] == []
    assert "traced" in document["tests"][0]["attainable"]["reason"]


# A timeout in the midst of a measurement

HANGING = """
import signal
import pytest
import torch

@pytest.mark.timeout(300)
def test_hanging(amp_benchmark, setup):
    torch.set_default_dtype(torch.float32)
    def hanging(arm):
        step = setup(arm)
        steps = iter(range(9**9))
        def one():
            if arm.enabled and next(steps) > 0:
                signal.raise_signal(signal.SIGALRM)  # as if the time were over now
            return step()
        return one
    amp_benchmark(hanging)

def test_nothing_is_left():
    assert not torch.is_autocast_enabled("cpu")
    assert torch.optim.Optimizer.__init__.__module__ == "torch.optim.optimizer"
    assert not hasattr(torch.optim.Optimizer.__init__, "__wrapped__")
    assert torch.utils._python_dispatch._get_current_dispatch_mode_stack() == []

def test_behind(amp_benchmark, setup):
    amp_benchmark(setup)
"""


@pytest.mark.needs("pytest_timeout")
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.slow
def test_a_timeout_says_where_it_was_and_leaves_the_next_test_alone(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(test_it=HANGING)
    result, document = run(project, "--amp-steps=2", "--amp-max-time=0.05")
    result.assert_outcomes(passed=2, failed=1)
    hanging, behind = document["tests"]
    assert (hanging["verdict"], hanging["error"]["arm"]) == ("error", "amp")
    assert (hanging["error"]["phase"], hanging["error"]["step"]) == ("parity", 2)
    result.stdout.fnmatch_lines(
        ["E *Timeout*", "E *pytest-amp: raised in the amp arm, step 2 (parity)"]
    )
    assert behind["verdict"] == "pass"


@pytest.mark.slow
def test_a_worker_that_dies_leaves_an_error_in_place_of_its_test(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(
        test_it=STEP
        + """
import os

def test_dying(amp_benchmark):
    os._exit(1)  # as pytest-timeout does from a thread, and the kernel when memory is short

@pytest.fixture
def dies_behind():
    yield
    os._exit(1)

def test_behind(dies_behind, amp_benchmark, setup):
    amp_benchmark(setup)
"""
    )
    result, document = run(project, "-n1", *QUICK)
    result.assert_outcomes(passed=2, failed=2)
    found = {test["nodeid"].partition("::")[2]: test for test in document["tests"]}
    assert found["test_dying"]["verdict"] == "error"
    assert "crashed while running" in found["test_dying"]["error"]["message"]
    assert found["test_behind"]["verdict"] == "error"
    assert found["test_step"]["verdict"] == "pass"
    assert len(document["tests"]) == 3


# Subtests

SUBTESTS = """
import pytest
import torch.nn.functional as F

def test_assertion(subtests, amp_benchmark, setup):
    with subtests.test(msg="measured"):
        amp_benchmark(setup)
    with subtests.test(msg="wrong"):
        assert "this" == "that"

@pytest.mark.amp(min_memory_reduction=0.99)
def test_gate(subtests, amp_benchmark, setup):
    with subtests.test(msg="gate"):
        amp_benchmark(setup)

@pytest.mark.xfail(reason="known")
@pytest.mark.amp(min_memory_reduction=0.99)
def test_expected(subtests, amp_benchmark, setup):
    with subtests.test(msg="gate"):
        amp_benchmark(setup)

@pytest.mark.amp
def test_body(subtests, model, optimizer, batch):
    with subtests.test(msg="in each step"):
        loss = F.cross_entropy(model(batch[0]), batch[1])
    return loss
"""


@pytest.mark.needs("pytest_subtests")
def test_a_test_with_subtests_has_one_report_and_no_false_note(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=SUBTESTS)
    result, reports = measure(project)
    result.stdout.fnmatch_lines(["*= pytest-amp =*", "1 passed, 2 failed, 1 error"])
    assert {name: report["verdict"] for name, report in reports.items()} == {
        "test_assertion": "error", "test_gate": "fail", "test_expected": "fail",
        "test_body": "pass",
    }  # fmt: skip
    assert len(read(project)["tests"]) == 4
    assert "this" in reports["test_assertion"]["error"]["message"]
    assert not any("unasserted" in note for note in reports["test_gate"]["notes"])
    assert any("xfail" in note for note in reports["test_expected"]["notes"])
    assert reports["test_gate"]["arms"]


# Ids that other plugins make


@pytest.mark.needs("pytest_repeat")
def test_repetitions_are_compared_with_the_test_s_own_baseline(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it=STEP
        + """
@pytest.mark.amp
@pytest.mark.parametrize("case", ["a", "1-3"])
def test_cases(model, optimizer, batch, case):
    return F.cross_entropy(model(batch[0]), batch[1])
"""
    )
    project.runpytest("--amp-json=baseline.json", *QUICK)
    compare = ("--amp-compare=baseline.json", "--amp-snapshot")
    project.runpytest("--amp-snapshot=update", *QUICK)
    result, reports = measure(project, "--count=2", *compare)
    result.assert_outcomes(passed=6)
    assert set(reports) == {
        "test_step[1-2]", "test_step[2-2]", "test_cases[a-1-2]", "test_cases[a-2-2]",
        "test_cases[1-3-1-2]", "test_cases[1-3-2-2]",
    }  # fmt: skip
    assert {gate(report, "compare:loss")["value"] for report in reports.values()} == {0.0}
    assert {gate(report, "compare:dtype_map")["verdict"] for report in reports.values()} == {"pass"}
    assert "missing" not in read(project)
    # and the other way round: nothing is missing where the stored run repeated its tests
    (project.path / "amp.json").rename(project.path / "repeated.json")
    for repeated in ((), ("--count=2",)):
        measure(project, "--amp-compare=repeated.json", *repeated)
        assert "missing" not in read(project)
    assert {gate(each, "compare:loss")["value"] for each in read(project)["tests"]} == {0.0}


# Terminals


@pytest.mark.needs("pytest_rich")
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.slow
@pytest.mark.parametrize("option", ["--rich", "--force-sugar -p sugar"])
def test_a_terminal_of_another_kind_shows_our_section_once(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:randomly -p no:asyncio -o amp_policy=native")
    project.makepyfile(
        test_it=STEP
        + """
@pytest.mark.amp(min_memory_reduction=0.99)
def test_failing(model, optimizer, batch):
    return F.cross_entropy(model(batch[0]), batch[1])
"""
    )
    command = f"{option} --amp-static --amp-snapshot=update -p no:cacheprovider"
    child = project.spawn_pytest(command, expect_timeout=120)
    shown = child.read().decode()
    assert shown.count("= pytest-amp =") == 1
    assert "below 99%" in shown
    assert "1 passed, 1 failed" in shown
    assert "2 created" in shown
