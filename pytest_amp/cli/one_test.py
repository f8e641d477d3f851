"""Run one test under pytest with something else in place of its experiment."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pytest

from pytest_amp.errors import AmpError
from pytest_amp.experiment.bisection import Say
from pytest_amp.plugin import collection, measuring
from pytest_amp.plugin.alone import IMPORTED_ALREADY, REPORTS

if TYPE_CHECKING:
    from pytest_amp.experiment.job import Job
    from pytest_amp.progress import Progress
    from pytest_amp.results.report import AmpReport

Instead = Callable[["Job", "Progress", Say], object]


def run(command: str, nodeid: str, arguments: Sequence[str], instead: Instead, say: Say) -> InPlace:
    """Collect one test, and run something else where it would be measured.

    Whatever ends it early is said, and also what pytest had written until then.

    Args:
        command: the name of the subcommand, for messages.
        nodeid: the test.
        arguments: further arguments for pytest.
        instead: takes the test's job and progress, and what prints a line.
        say: prints a line.

    Returns:
        How it ended.
    """
    terminal, written = sys.stdout, io.StringIO()

    def say_aloud(line: str) -> None:
        with contextlib.redirect_stdout(terminal):
            say(line)

    hook = InPlace(command, instead, say_aloud)
    given = [nodeid, "-s", "-W", IMPORTED_ALREADY, *arguments]
    if importlib.util.find_spec("xdist"):
        given += ["-n", "0"]
    with (
        tempfile.TemporaryDirectory() as cache,  # what failed last stays as it was
        contextlib.redirect_stdout(written),
        contextlib.redirect_stderr(written),
    ):
        pytest.main([*given, "-o", f"cache_dir={cache}"], plugins=[hook])
    if hook.error is not None:
        say(f"pytest-amp {command}: {hook.error}")
    elif not hook.ended and not hook.interrupted:
        say(written.getvalue().rstrip())
        what = "ended in an error" if hook.began else "did not run as one amp test"
        say(f"pytest-amp {command}: {nodeid} {what}; see above")
    return hook


class _Done(Exception):
    """Ends the test afterwards, since there is no report for it to go on with."""


class InPlace:
    """A plugin that runs something in place of the experiment.

    Attributes:
        began: whether it began.
        ended: whether it ran to its end.
        interrupted: whether Ctrl-C ended it.
        error: why the test can't be measured.
    """

    def __init__(self, command: str, instead: Instead, say: Say) -> None:
        self.began = self.ended = self.interrupted = False
        self.error: AmpError | None = None
        self._command = command
        self._instead = instead
        self._say = say

    @property
    def well(self) -> bool:
        """Whether it ran to its end, without an error."""
        return self.ended and self.error is None

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> None:
        """Leave the project's reports alone, whatever its ini file asks for."""
        for name in REPORTS:
            if hasattr(config.option, name):
                setattr(config.option, name, None)

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Take the experiment's place."""
        config.stash[measuring.RUNNER] = self._run

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Refuse to run several tests."""
        found = [item for item in session.items if collection.is_amp(item)]
        if len(found) > 1:
            names = ", ".join(item.nodeid for item in found[:3])
            more = ", ..." if len(found) > 3 else ""
            self.error = AmpError(
                f"that is {len(found)} amp tests ({names}{more}); {self._command} one of them"
            )
            session.items.clear()

    def _run(self, job: Job, progress: Progress) -> AmpReport:
        if not self.began:
            self.began = True
            try:
                self._instead(job, progress, self._say)
            except AmpError as error:
                self.error = error
                raise
            except KeyboardInterrupt:
                self.interrupted = True
                raise
            self.ended = True
        raise _Done
