"""Point at the user's lines: what fails a test, and as an annotation in GitHub's words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from pytest_amp import units
from pytest_amp.results.explanation import brief, explains, in_order, part_in
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import Finding, Severity


class Place(NamedTuple):
    """A line of a file of the project.

    Attributes:
        file: the file, relative to the top of the repository, with forward slashes.
        line: the line's number, from 1.
    """

    file: str
    line: int


class Mark(NamedTuple):
    """What there is to say at a line.

    Attributes:
        place: the line.
        severity: "error" for what fails the test; "warning" for the other findings.
        check: the finding's code, or the gate's name.
        title: the finding or the gate in a few words.
        message: what was found, and in which test.
        key: what stays the same from run to run as long as this is not mended.
    """

    place: Place
    severity: Severity
    check: str
    title: str
    message: str
    key: tuple[str, ...]


class Ended(NamedTuple):
    """How pytest saw a test end.

    Attributes:
        report: the test's report.
        test: the line at which the test is defined; None if it is not known.
        failed: whether the test failed. One that passed although its gates failed did not.
        expected: whether it was expected to fail.
    """

    report: AmpReport
    test: Place | None
    failed: bool
    expected: bool


def marks(ended: Ended, find: Callable[[str], Place | None]) -> Iterator[Mark]:
    """Yield what there is to say of a test, the most telling first.

    A finding stands at the user's line, or else at the test. A gate that failed without a cause
    that was found stands at the test.

    Args:
        ended: the test.
        find: returns the place of a location such as ``models/net.py:42``; None if it is in none
            of the project's files.
    """
    report = ended.report
    if ended.expected:
        return
    wrong = [gate for gate in report.gates if gate.verdict == "fail"] or list(report.unanswered)
    explained: set[str] = set()
    for finding in in_order(report):
        part = part_in(report, finding)
        gates = explains(report, finding)
        fails = finding.stands or (finding.confirmed and bool(gates))
        explained.update(gates if fails else ())
        place = (find(finding.location) if finding.location else None) or ended.test
        if place is not None:
            yield Mark(
                place,
                "error" if fails and ended.failed else "warning",
                finding.code,
                f"{finding.code} {finding.name}",
                _message(report, finding, part),
                (finding.code, report.nodeid, place.file, finding.module or ""),
            )
    wrong = [gate for gate in wrong if gate.name not in explained]
    if wrong and ended.test is not None:
        yield Mark(
            ended.test,
            "error" if ended.failed else "warning",
            wrong[0].name,
            "mixed precision: " + units.listed([gate.name for gate in wrong]),
            f"{report.nodeid}: {'; '.join(map(brief, wrong))}",
            (*(gate.name for gate in wrong), report.nodeid),
        )


def _message(report: AmpReport, finding: Finding, part: str) -> str:
    where = f" in {finding.module}" if finding.module else ""
    return f"{report.nodeid}{where}: {f'{part}: ' if part else ''}{finding.text}"


def github(mark: Mark) -> str:
    """Return a mark as a command to GitHub's runner, which is a line of the job's output."""
    file, title = (_property(each) for each in (mark.place.file, mark.title))
    message = _data(units.one_line(mark.message))
    return f"::{mark.severity} file={file},line={mark.place.line},title={title}::{message}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
