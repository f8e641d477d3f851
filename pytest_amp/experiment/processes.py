"""Run one test again in a process of its own, and bring back its report."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pytest_amp import units
from pytest_amp.judge import processes as judge
from pytest_amp.progress import Progress
from pytest_amp.results.processes import ProcessRun
from pytest_amp.results.report import AmpReport
from pytest_amp.settings.resolved import Settings

REPORT, PLACE, OUTPUT = "report.json", "place.json", "output.txt"
_LOOK_EVERY_S = 0.1
# It may take so many times as long as the test took here, and as long as importing may take.
_PATIENCE, _STARTING_S = 10, 300.0
# A process that was told to end is killed after this time.
_GRACE_S = 5.0


class NoAnswer(Exception):
    """The process brought back no report; the message says why."""


@dataclass(frozen=True)
class Command:
    """How to run a test alone.

    Attributes:
        arguments: the command line. The folder for what it brings back is added to it.
        folder: where to run it.
        nodeid: the test.
        environment: further environment variables.
    """

    arguments: Sequence[str]
    folder: Path
    nodeid: str
    environment: Mapping[str, str]


Again = Callable[[str], AmpReport]


def confirmed(report: AmpReport, settings: Settings, again: Again) -> AmpReport:
    """Return the report with what fresh processes say of its timing gates, if they are to be asked.

    Args:
        report: of this process.
        settings: the test's settings.
        again: runs the test in a fresh process; it takes what to show meanwhile.
    """
    names = judge.to_confirm(report, settings.confirms)
    if settings.processes > 1:  # these have answered the gate of the speedup already
        names = tuple(name for name in names if name != "speedup")
    if not names:
        return report
    try:
        return judge.confirmed(report, names, again("a fresh process"))
    except NoAnswer as problem:
        return judge.confirmed(report, names, None, str(problem))


def over_processes(report: AmpReport, settings: Settings, again: Again) -> AmpReport:
    """Return the report with a speedup over processes, if that is asked for.

    The test runs in more processes until their medians decide, there are as many as wanted, or two
    of them in a row bring nothing back.
    """
    if report.speedup is None or settings.processes == 1:
        return report
    gate = next((each for each in report.gates if each.name == "speedup"), None)
    threshold = gate.threshold if gate else None
    runs = [judge.of(report)]
    while len(runs) < settings.processes:
        if threshold is not None and judge.decided(runs, threshold, settings.error_rate):
            break
        if len(runs) > 2 and runs[-1].value is runs[-2].value is None:
            break
        try:
            runs.append(judge.of(again(f"process {len(runs) + 1} of {settings.processes}")))
        except NoAnswer as problem:
            runs.append(ProcessRun(None, None, None, 0, "error", str(problem)))
    return judge.over(report, runs, settings.error_rate)


def run(command: Command, progress: Progress, what: str, took_s: float) -> AmpReport:
    """Run a test in a fresh process, show where it is, and return its report.

    Whatever ends the wait, such as Ctrl-C, ends the process too, and all that it started.

    Args:
        command: how to run it.
        progress: is told where it is.
        what: what to call the process meanwhile.
        took_s: how long the test took in this process.

    Raises:
        NoAnswer: it brought back no report.
    """
    with tempfile.TemporaryDirectory(prefix="pytest-amp-") as name:
        folder = Path(name)
        try:
            with (
                (folder / OUTPUT).open("wb") as output,
                _started(command, folder, output) as process,
            ):
                _await(process, folder, progress, what, _STARTING_S + _PATIENCE * took_s)
        except OSError as error:
            raise NoAnswer(f"it could not be started ({error})") from error
        return _brought_back(command.nodeid, folder, process.returncode)


@contextlib.contextmanager
def _started(
    command: Command, folder: Path, output: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """Start the process; at the end, nothing of it is left."""
    process = subprocess.Popen(
        [*command.arguments, str(folder)],
        cwd=command.folder,
        env={**os.environ, **command.environment},
        stdin=subprocess.PIPE,  # it ends when nobody holds the other end any more
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=sys.platform != "win32",
    )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and whatever it started."""
    if process.poll() is None:
        _signal(process, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    if sys.platform != "win32":
        _signal(process, signal.SIGKILL)
    elif process.poll() is None:
        process.kill()
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to the process and all of its group."""
    with contextlib.suppress(OSError, ValueError):
        if sys.platform == "win32":
            process.send_signal(number)
        else:
            os.killpg(process.pid, number)


def _await(
    process: subprocess.Popen[bytes], folder: Path, progress: Progress, what: str, patience_s: float
) -> None:
    """Wait for the process's end, and show where it is.

    Raises:
        NoAnswer: it takes far longer than the test took here.
    """
    waited_s, last = 0.0, time.monotonic()
    while process.poll() is None:
        place, now = _place(folder), time.monotonic()
        if not place.startswith("waiting"):  # for its turn, which takes as long as others take
            waited_s += now - last
        last = now
        if waited_s > patience_s:
            raise NoAnswer(f"it did not end within {units.duration(patience_s)}")
        progress.at(what, None, estimate=place or "starting")
        time.sleep(_LOOK_EVERY_S)


def _place(folder: Path) -> str:
    """Return where the process says that it is."""
    with contextlib.suppress(OSError, ValueError):
        return str(json.loads((folder / PLACE).read_text("utf-8")))
    return ""


def _brought_back(nodeid: str, folder: Path, status: int) -> AmpReport:
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        tests = json.loads((folder / REPORT).read_text("utf-8"))["tests"]
        found = [each for each in tests if each["nodeid"] == nodeid] or tests
        if len(found) == 1 or found is not tests:
            return AmpReport.from_dict(found[-1])
    written = (folder / OUTPUT).read_text("utf-8", "replace").strip().splitlines()
    last = next((line.strip(" =") for line in reversed(written) if line.strip(" =")), "no output")
    raise NoAnswer(units.printable(f"it ended with status {status} and no report: {last}"))
