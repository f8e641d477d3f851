"""Find the lines of the repository that a run's findings are about."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from pytest_amp import provenance
from pytest_amp.render.annotations import Ended, Mark, Place, github, marks
from pytest_amp.render.verdicts import last_attempts
from pytest_amp.results.report import AmpReport

# Where a CI system has checked out the repository, if git does not tell.
_CHECKOUTS = ("GITHUB_WORKSPACE", "CI_PROJECT_DIR")


class Outcome(NamedTuple):
    """What pytest itself says of a test: its line, and how it ended."""

    location: tuple[str, int | None, str]
    failed: bool
    expected: bool

    @classmethod
    def of(cls, report: pytest.TestReport) -> Outcome:
        """Return what a test's report says."""
        return cls(report.location, report.failed, hasattr(report, "wasxfail"))


def of_run(
    config: pytest.Config, reports: Sequence[AmpReport], outcomes: Mapping[str, Outcome]
) -> list[Mark]:
    """Return the marks of all tests. Of a test that was run several times, the last run counts."""
    if not reports:
        return []
    files = _Files(config)
    return [
        mark
        for report in last_attempts(reports)
        for mark in marks(files.ended(report, outcomes.get(report.nodeid)), files.find)
    ]


def for_github(find: Callable[[], Sequence[Mark]]) -> Iterator[str]:
    """Yield the lines that annotate what fails, in a job that GitHub's runner reads."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        yield from (github(mark) for mark in find() if mark.severity == "error")


class _Files:
    """The repository's files."""

    def __init__(self, config: pytest.Config) -> None:
        self._root = config.rootpath
        self._run_in = config.invocation_params.dir
        named = next(filter(None, map(os.environ.get, _CHECKOUTS)), None)
        self._top = Path(provenance.top(self._root) or named or self._root).resolve()

    def find(self, location: str) -> Place | None:
        """Return the place of a location such as ``models/net.py:42``, if it is in a file of ours.

        Findings write paths relative to the folder that pytest runs in.
        """
        file, _, line = location.rpartition(":")
        return self._place(self._run_in / file, int(line)) if line.isdigit() else None

    def ended(self, report: AmpReport, outcome: Outcome | None) -> Ended:
        """Return how a test ended."""
        if outcome is None:
            return Ended(report, None, failed=True, expected=False)
        file, line, _ = outcome.location
        test = self._place(self._root / file, (line or 0) + 1)
        return Ended(report, test, outcome.failed, outcome.expected)

    def _place(self, path: Path, line: int) -> Place | None:
        path = path.resolve()
        if not (path.is_file() and path.is_relative_to(self._top)):
            return None
        return Place(path.relative_to(self._top).as_posix(), line)
