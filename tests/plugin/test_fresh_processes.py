"""--amp-confirm and --amp-processes, as a user meets them; each fresh process imports torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_amp.experiment import processes
from pytest_amp.plugin import fresh
from pytest_amp.plugin.options import command_line
from pytest_amp.results.report import AmpReport

# In each process steps take what the clock is told.
CLOCK = """
import pytest
from pytest_amp.lab.machine.device import Device

class Clock:
    time_s = 0.0

@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr(Device, "now", lambda _: Clock.time_s)
    monkeypatch.setattr(Device, "pause", lambda *_: None)
    monkeypatch.setattr(Device, "counters", lambda _: None)
    return Clock
"""
STEP = """
import os
import pytest, torch

FASTER = {"one": 1.0, "other": 2.0}[os.environ.get("AMP_SPEED", "one")]

@pytest.mark.amp(min_speedup=1.5, steps=2, warmup=1, max_time=2, max_loss_diff=None)
@pytest.mark.parametrize("size", [4])
def test_step(amp_benchmark, clock, size):
    def setup(arm):
        model = torch.nn.Linear(size, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        def step():
            clock.time_s += 0.004 / FASTER if arm.enabled else 0.004
            optimizer.zero_grad()
            with arm.autocast():
                loss = model(torch.ones(2, size)).square().mean()
            loss.backward()
            optimizer.step()
            return loss
        return step
    amp_benchmark(setup)

def test_another():
    raise AssertionError("which has no business in the fresh process")
"""


@pytest.fixture
def steps(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("COLUMNS", "200")
    pytester.makeconftest(CLOCK)
    pytester.makepyfile(test_it=STEP)
    return pytester


def measured(project: pytest.Pytester, *options: str) -> tuple[pytest.RunResult, dict[str, Any]]:
    result = project.runpytest(
        "test_it.py", "-k", "step", "-p", "no:cacheprovider", "--amp-json=r.json", *options
    )
    (test,) = json.loads((project.path / "r.json").read_text())["tests"]
    return result, test


def speed_of(test: dict[str, Any]) -> dict[str, Any]:
    (found,) = [gate for gate in test["gates"] if gate["name"] == "speedup"]
    return found


def test_a_failure_counts_once_a_fresh_process_agrees(steps: pytest.Pytester) -> None:
    result, test = measured(steps, "--amp-confirm=red", "--basetemp", str(steps.path / "base"))
    result.assert_outcomes(failed=1, deselected=1)
    assert speed_of(test)["verdict"] == "fail"
    assert "; a fresh process agrees (" in speed_of(test)["reason"]
    assert [each["verdict"] for each in test["processes"]] == ["fail", "fail"]
    assert not list(steps.path.glob("**/.pytest_cache"))


def test_an_answer_of_one_process_alone_is_none(
    steps: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    command_of = fresh._command

    def other_speed(item: pytest.Item) -> processes.Command:
        found = command_of(item)
        return processes.Command(
            found.arguments, found.folder, found.nodeid, {"AMP_SPEED": "other"}
        )

    monkeypatch.setattr(fresh, "_command", other_speed)
    result, test = measured(steps, "--amp-strict", "--amp-override", "select=AMP5")
    result.assert_outcomes(failed=1, deselected=1)  # strict asks for an answer
    result.stdout.fnmatch_lines(["*AmpInconclusive*"])
    assert speed_of(test)["verdict"] == "inconclusive"
    assert "a fresh process passes (2.00x [2.00, 2.00])" in speed_of(test)["reason"]


def test_an_xdist_worker_asks_too(steps: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    result, test = measured(steps, "--amp-processes=2", "-n", "1", "-x", "--maxfail=1")
    result.assert_outcomes(passed=1)
    assert len(test["processes"]) == 2
    assert test["speedup"]["pairs"] >= 9  # of this process
    assert "the fewest that could decide are 9" in speed_of(test)["reason"]
    assert test["worker"] == "gw0"


def test_a_fresh_process_that_finds_no_test_says_so(
    steps: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fresh, "_ITSELF", ("--no-such-option",))
    _, test = measured(steps, "--amp-confirm=red")
    assert speed_of(test)["verdict"] == "inconclusive"
    assert (
        "a fresh process could not confirm it (it ended with status 4" in speed_of(test)["reason"]
    )


@pytest.mark.parametrize(
    ("options", "answers", "asked"),
    [
        ((), [], 0),
        (("--amp-confirm=off", "--amp-strict=inconclusive"), [], 0),
        (("--amp-strict=device",), [], 0),
        (("--amp-confirm=red", "--amp-static"), [], 0),
        (("--amp-strict=inconclusive",), ["fail"], 1),
        (("--amp-confirm=all", "--amp-override", "min_speedup=0.5"), ["pass"], 1),
        (("--amp-confirm=red", "--amp-override", "min_speedup=0.5"), [], 0),
        (("--amp-processes=12",), ["fail"] * 11, 8),  # nine decide
        (("--amp-processes=4", "--amp-confirm=red"), ["fail"] * 3, 3),
    ],
)
def test_no_more_processes_are_asked_than_it_takes(
    steps: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, options, answers, asked
) -> None:
    """The fresh processes are this one's own report, read back."""
    calls = []

    def answer(command, progress, what, took_s) -> AmpReport:
        calls.append(what)
        return reports[-1]

    reports: list[AmpReport] = []
    again_of = fresh.again

    def noting(item, report, progress):
        reports.append(report)
        return again_of(item, report, progress)

    monkeypatch.setattr(processes, "run", answer)
    monkeypatch.setattr(fresh, "again", noting)
    measured(steps, *options)
    assert len(calls) == asked
    if "--amp-processes=12" in options:
        assert calls[0] == "process 2 of 12"


def test_the_command_is_this_runs(steps: pytest.Pytester) -> None:
    config = steps.parseconfig("-k", "step", "test_it.py", "--amp-steps", "3", "-q")
    found = command_line(config)
    assert found[:6] == ["-k", "step", "test_it.py", "--amp-steps", "3", "-q"]
    assert all(each.startswith("--basetemp=") for each in found[6:])  # which is pytester's


def test_only_the_one_test_runs_whatever_else_is_named_and_however_strict_warnings_are(
    steps: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in the environment, options of a conftest, warnings as errors, a log file."""
    steps.makeconftest(f"{CLOCK}\ndef pytest_addoption(parser): parser.addoption('--level')")
    steps.makeini("[pytest]\nfilterwarnings = error\nlog_file = run.log")
    (steps.path / "test_other.py").write_text(STEP)
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:asyncio -o amp_policy=native test_other.py")
    _, test = measured(steps, "--amp-confirm=red", "--level", "3", "-k", "test_it")
    assert "; a fresh process agrees (" in speed_of(test)["reason"]


@pytest.mark.parametrize("value", ["green", "yes", ""])
def test_an_unknown_confirmation_names_the_known_ones(steps: pytest.Pytester, value: str) -> None:
    result = steps.runpytest(f"--amp-confirm={value}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--amp-confirm: '{value}' is not one of auto, off, red, all"])


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_number_of_processes_that_is_none_is_refused(steps: pytest.Pytester, value: str) -> None:
    result = steps.runpytest(f"--amp-processes={value}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--amp-processes: *"])


@pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX's")
def test_a_fresh_process_ends_when_the_one_that_asked_is_killed(steps: pytest.Pytester) -> None:
    slow = STEP.replace("max_time=2", "max_time=80000").replace("=1.5", "=1.0")
    (steps.path / "test_slow.py").write_text(slow)
    script = (
        "import os, sys; sys.argv[1:] = ['-k', 'step', '-q', 'test_slow.py', '.']; "
        "from pytest_amp.plugin.alone import main; main()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], cwd=steps.path, stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not Path(steps.path, "place.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert child.poll() is None
    child.stdin.close()
    assert child.wait(60) != 0
