"""Write a test's gates, findings and notes as a piece of HTML, for another reporter's page."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from pytest_amp import units
from pytest_amp.render.verdicts import outcome_of, why_nothing
from pytest_amp.results.explanation import in_order, part_in
from pytest_amp.results.report import AmpReport


def fragment(report: AmpReport) -> str:
    """Return the piece; its text is escaped, and it brings no styles of its own."""
    return "\n".join(_lines(report))


def _lines(report: AmpReport) -> Iterator[str]:
    speedup = f", speedup {report.speedup}" if report.speedup else ""
    yield f"<p>Mixed precision: <b>{_text(outcome_of(report).word)}</b>{_text(speedup)}</p>"
    if reason := why_nothing(report):
        yield f"<p>{_text(reason)}</p>"
    if report.asked:
        yield "<table><tr><th>gate</th><th></th><th>why</th></tr>"
        for gate in report.asked:
            cells = "".join(
                f"<td>{_text(each)}</td>" for each in (gate.name, gate.word, gate.reason)
            )
            yield f"<tr>{cells}</tr>"
        yield "</table>"
    points = [
        ", ".join(filter(None, (f"{each.severity} {each.title}", part_in(report, each))))
        + f": {each.text}"
        for each in in_order(report)
    ]
    points += [f"note: {each}" for each in report.notes]
    if points:
        yield "<ul>"
        yield from (f"<li>{_text(each)}</li>" for each in points)
        yield "</ul>"


def _text(text: str) -> str:
    return escape(units.one_line(text))
