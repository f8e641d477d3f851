"""Compose the lines of the summary at the end of a run; the plugin writes them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from pytest_amp import units
from pytest_amp.render.details import details, said
from pytest_amp.render.heading import heading
from pytest_amp.render.table import table
from pytest_amp.render.text import (
    BAD,
    FAINT,
    GAP,
    UNSURE,
    Line,
    Span,
    cut,
    fit,
    sentence,
    shorten,
    wrapped,
)
from pytest_amp.render.verdicts import (
    counted,
    kind_of,
    last_attempts,
    outcome_of,
    why_nothing,
)
from pytest_amp.results.gaps import Gap
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import COMPARED


def summary(
    reports: Sequence[AmpReport],
    width: int,
    verbosity: int,
    hidden: Mapping[str, int] | None = None,
    told: Collection[str] = (),
) -> list[Line]:
    """Return the lines about a whole run; none if there are no reports.

    Args:
        reports: the reports of the tests.
        width: the width of the terminal.
        verbosity: pytest's. Below 0, each test that did not pass has one line. Above 0, passed
            gates, suppressed findings and settings are shown too.
        hidden: by setting of the command line, how many tests' markers hid it.
        told: the ids of the tests whose failure pytest has told above.
    """
    if not reports:
        return []
    if verbosity < 0:
        lines = [_brief(report, width) for report in reports if kind_of(report) != "pass"]
        lines += _without_baseline(reports, width)
        lines += _set_for_others(reports, width)
        return [fit(line, width) for line in (*lines, _counts(reports))]
    lines = [
        *heading(reports, width, verbosity, hidden or {}),
        (),
        *table(reports, width),
        (),
        *details(reports, width, verbosity, told),
        *_closing(reports, verbosity),
    ]
    lines[-1:-1] = _set_for_others(reports, width)
    return [fit(line, width) for line in lines]


def missed(gaps: Iterable[Gap], width: int) -> Iterator[Line]:
    """Yield what the run did not answer though it was meant to, so that nobody overlooks it."""
    for gap in gaps:
        for line in wrapped(sentence(f"{gap.word}: {gap.text}; {gap.consequence}"), width, GAP):
            yield (Span(line, BAD if gap.fails else UNSURE),)


def _set_for_others(reports: Sequence[AmpReport], width: int) -> Iterator[Line]:
    """Yield the gates that are set only for devices on which the tests did not run."""
    found: dict[tuple[str, tuple[str, ...], str], list[AmpReport]] = {}
    for report in reports:
        for gate in report.unmeasured:
            if gate.only_for:
                kind = report.environment.device_type if report.environment else "another device"
                found.setdefault((gate.name, gate.only_for, kind), []).append(report)
    for (name, keys, kind), those in found.items():
        strict = any(report.unanswered for report in those)
        tests = units.plural(len(those), "test")
        text = (
            f"NOT GATED: {name} of {tests} is gated on {' and '.join(keys)} only, and ran on {kind}"
            f"; --amp-strict {'fails' if strict else 'would fail'} {_them(those)}"
        )
        for line in wrapped(sentence(text), width, GAP):
            yield (Span(line, BAD if strict else UNSURE),)


def _them(reports: Sequence[AmpReport]) -> str:
    return "it" if len(reports) == 1 else "them"


def _brief(report: AmpReport, width: int) -> Line:
    outcome = outcome_of(report)
    reason = why_nothing(report) or next((sentence(entry.text) for entry in said(report)), "")
    room = width - len(outcome.word) - 1
    nodeid = shorten(report.nodeid, room)
    text = f"{nodeid} - {reason}" if reason else nodeid
    return Span(outcome.word, outcome.markup), Span(f" {cut(text, room)}")


def _without_baseline(reports: Sequence[AmpReport], width: int) -> Iterator[Line]:
    """Yield how many tests have no baseline, which a quiet run would otherwise not say."""
    missing = [
        next(gate.reason for gate in report.gates if gate.name in COMPARED)
        for report in reports
        if report.baseline is None and any(gate.name in COMPARED for gate in report.gates)
    ]
    if missing:
        tests = units.plural(len(missing), "test")
        for line in wrapped(sentence(f"{tests} with {missing[0]}"), width, GAP):
            yield (Span(line, UNSURE),)


def _closing(reports: Sequence[AmpReport], verbosity: int) -> Iterator[Line]:
    suppressed = sum(
        finding.suppressed is not None for report in reports for finding in report.findings
    )
    if suppressed:
        where = "" if verbosity > 0 else "; -v shows them and why"
        yield (Span(f"{units.plural(suppressed, 'finding')} suppressed{where}", FAINT),)
    open_questions = sum(
        report.verdict == "inconclusive" and not report.unanswered for report in reports
    )
    if open_questions:
        what = f"{units.plural(open_questions, 'test')} without an answer"
        them = "it" if open_questions == 1 else "them"
        yield (Span(f"{what}; --amp-strict would fail {them}", UNSURE),)
    yield _counts(reports)


def _counts(reports: Sequence[AmpReport]) -> Line:
    """Return a line such as ``4 passed, 1 failed, 1 inconclusive, 2 skipped``.

    If a test was run several times, its last run counts.
    """
    spans = [Span(text, markup) for text, markup in counted(last_attempts(reports))]
    return tuple(span for each in spans for span in (Span(", "), each))[1:]
