"""A test in a process of its own: what it brings back, and that nothing of it is left."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pytest_amp.experiment import processes
from pytest_amp.experiment.processes import Command, NoAnswer, run
from pytest_amp.progress import Progress
from pytest_amp.results.report import AmpReport
from tests.helpers.saved_runs import report

BRINGS_BACK = """
import sys, pathlib
pathlib.Path(sys.argv[-1], "report.json").write_text({text!r})
"""
WAITS = """
import sys, json, pathlib, subprocess, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path({where!r}).write_text(str(child.pid))
pathlib.Path(sys.argv[-1], "place.json").write_text(json.dumps("timing, amp"))
time.sleep(600)
"""


def command(script: str, nodeid: str = "test_it.py::test_a") -> Command:
    return Command([sys.executable, "-c", script], Path.cwd(), nodeid, {"AMP_X": "1"})


def brought(script: str, nodeid: str = "test_it.py::test_a") -> AmpReport:
    return run(command(script, nodeid), Progress(), "a fresh process", 1.0)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody asked about does not."""
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return state.stdout.strip() not in ("", "Z", "Z+")


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 30
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_alive(pid)


def test_the_report_of_the_test_comes_back() -> None:
    text = json.dumps(
        {"tests": [report("test_it.py::test_b").to_dict(), report("test_it.py::test_a").to_dict()]}
    )
    assert brought(BRINGS_BACK.format(text=text)).nodeid == "test_it.py::test_a"


def test_an_only_report_is_meant_whatever_its_name_is() -> None:
    text = json.dumps({"tests": [report("tests/test_it.py::test_a").to_dict()]})
    assert brought(BRINGS_BACK.format(text=text)).nodeid == "tests/test_it.py::test_a"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("raise SystemExit(3)", "it ended with status 3 and no report: no output"),
        ("print('E  no\\n==='); raise SystemExit(1)", "with status 1 and no report: E  no"),
        (BRINGS_BACK.format(text="{"), "it ended with status 0 and no report"),
        (BRINGS_BACK.format(text='{"tests": []}'), "it ended with status 0 and no report"),
        (BRINGS_BACK.format(text='{"tests": [{"nodeid": "a"}]}'), "status 0 and no report"),
    ],
)  # fmt: skip
def test_no_report_is_said_with_the_last_line_that_it_wrote(script, said) -> None:
    with pytest.raises(NoAnswer, match=said):
        brought(script)


def test_the_environment_is_ours_and_what_the_command_adds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AMP_Y", "yes")
    with pytest.raises(NoAnswer, match="no report: 1 yes"):
        brought("import os; print(os.environ['AMP_X'], os.environ['AMP_Y'])")


def test_where_it_is_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_STARTING_S", 3.0)
    shown = []
    progress = Progress(show=lambda each: shown.append((each.phase, each.estimate)))
    with pytest.raises(NoAnswer, match="it did not end within"):
        run(command(WAITS.format(where=str(tmp_path / "pid"))), progress, "process 2 of 9", 0.0)
    assert shown[0] == ("process 2 of 9", "starting")
    assert ("process 2 of 9", "timing, amp") in shown
    assert gone(int((tmp_path / "pid").read_text()))


@pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX's")
def test_ctrl_c_ends_it_and_all_that_it_started(tmp_path: Path) -> None:
    where = tmp_path / "pid"

    def interrupt() -> None:
        while not where.exists() or not where.read_text():
            time.sleep(0.02)
        signal.raise_signal(signal.SIGINT)

    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            brought(WAITS.format(where=str(where)))
    finally:
        signal.signal(signal.SIGINT, former)
    assert gone(int(where.read_text()))
