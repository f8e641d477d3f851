"""Write the run as Markdown, for a CI system's summary and a comment on a pull request.

The verdict comes first, then the tests that failed, have no answer, or changed; what passed is
folded. Whatever does not fit, the least important part first, is left out and named.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pytest_amp import units
from pytest_amp.render.heading import heading
from pytest_amp.render.markdown_text import block, code, escaped, folded, table
from pytest_amp.render.table import TableColumn, columns_of
from pytest_amp.render.text import cut, text_of
from pytest_amp.render.verdicts import (
    GRAVITY,
    counted,
    kind_of,
    last_attempts,
    outcome_of,
    why_nothing,
)
from pytest_amp.results.explanation import in_order, in_units, interval, part_in
from pytest_amp.results.gaps import Gap
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import COMPARED, Finding, Gate
from pytest_amp.settings import table as settings

# GitHub takes no more than 1 MiB for a step's summary, and no comment of more than 65,536
# characters. A character has up to four bytes.
MOST_IN_A_SUMMARY = 1_000_000
MOST_IN_A_COMMENT = 65_000
_SIGNS = {
    "pass": "✅", "fail": "❌", "error": "❌", "unanswered": "❌", "inconclusive": "⚠️",
    "skipped": "➖", "not_gated": "➖",  # noqa: RUF001
}  # fmt: skip
# A peak or a loss that changed by less did not move.
_MOVED_BY = 0.01
# What is always there has to fit: at most so many rows and gaps, and so many characters of a text.
_MOST_ROWS, _MOST_GAPS, _LONGEST = 100, 20, 400


class Run(NamedTuple):
    """What the summary says beside the tests' reports.

    Attributes:
        named: what identifies the run, as in ``--amp-json``.
        gaps: what the run did not answer.
        document: the JSON report, which is folded at the end.
    """

    named: Mapping[str, Any]
    gaps: Sequence[Gap]
    document: Mapping[str, Any]


def summary(reports: Sequence[AmpReport], run: Run, most: int) -> str:
    """Return the whole text, of at most so many bytes.

    Args:
        reports: the reports of the tests. If a test was run several times, its last run counts.
        run: what else there is to say.
        most: how many bytes there is room for.
    """
    last = last_attempts(reports)
    gravest_first = sorted(last, key=lambda each: GRAVITY.index(kind_of(each)))
    ended_well = [each for each in gravest_first if kind_of(each) in ("pass", "skipped")]
    told = [each for each in gravest_first if kind_of(each) not in ("pass", "skipped")]
    told += [each for each in ended_well if _moved(each)]
    rest = [each for each in ended_well if not _moved(each)]
    columns = columns_of(gravest_first) if gravest_first else ()
    parts = [("", _verdict(gravest_first, run, told, columns))]
    parts += [(f"the details of {_named(each)}", _test(each)) for each in told]
    parts.append(("", _where(gravest_first, run.named)))
    if rest:
        title = ", ".join(text for text, _ in counted(rest))
        lines = folded(title, _passing(rest, columns))
        parts.append((f"what passed or was skipped ({title})", lines))
    written = json.dumps(run.document, ensure_ascii=False)
    parts.append(("the JSON report", folded("JSON", [block(written, "json")])))
    return _fitting(parts, most)


def _fitting(parts: Sequence[tuple[str, str]], most: int) -> str:
    """Join the parts that there is room for, and name those that are left out.

    It returns "" if there is no room for what has to be there.
    """
    kept: list[str] = []
    left_out: list[str] = []
    room = most - 1000  # for the line that names them
    room -= sum(_size(text) for name, text in parts if not name)
    for name, text in parts:
        if name and _size(text) > room:
            left_out.append(name)
            continue
        kept.append(text)
        room -= _size(text) if name else 0
    if left_out:
        more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        kept.append(f"Left out for want of room: {left_out[0]}{more}; `--amp-json` has everything.")
    whole = "\n\n".join(kept) + "\n"
    return whole if _size(whole) <= most + 2 else ""


def _size(text: str) -> int:
    """Return the bytes of a part and of what divides it from the next."""
    return len(text.encode("utf-8", "backslashreplace")) + 2


def _moved(report: AmpReport) -> bool:
    """Return whether a figure changed since the baseline, beyond its interval or by 1%."""
    return any(_changed(gate) for gate in report.gates if gate.name in COMPARED)


def _changed(gate: Gate) -> bool:
    if gate.value is None:
        return False
    if gate.low is not None and gate.high is not None:
        return gate.low > 0 or gate.high < 0
    return not abs(gate.value) <= _MOVED_BY


def _verdict(
    reports: Sequence[AmpReport],
    run: Run,
    told: Sequence[AmpReport],
    columns: Sequence[TableColumn],
) -> str:
    """Return the heading, the gates that no test was asked, and the table of what is told."""
    gravest = kind_of(reports[0]) if reports else "skipped"
    if run.gaps and gravest in ("pass", "skipped"):
        gravest = "unanswered" if any(gap.fails for gap in run.gaps) else "inconclusive"
    counts = ", ".join(text for text, _ in counted(reports, GRAVITY)) or "nothing was measured"
    lines = [f"## {_SIGNS[gravest]} Mixed precision: {counts}"]
    for gap in run.gaps[:_MOST_GAPS]:
        lines += ["", f"**{gap.word}**: {escaped(cut(gap.text, _LONGEST))}; {gap.consequence}"]
    if (left := len(run.gaps) - _MOST_GAPS) > 0:
        lines += ["", f"... and {left} more"]
    if measured := [each for each in told if not why_nothing(each)]:
        lines += ["", *_table(measured[:_MOST_ROWS], columns)]
        if (left := len(measured) - _MOST_ROWS) > 0:
            lines += ["", f"... and {units.plural(left, 'test')} more"]
    return "\n".join(lines)


def _table(reports: Sequence[AmpReport], columns: Sequence[TableColumn]) -> Iterator[str]:
    yield from table(
        ["verdict", "test", *(column.title for column in columns)],
        (
            [
                _on_one_line(_outcome(each)),
                _named(each),
                *(_cell(column, each) for column in columns),
            ]
            for each in reports
        ),
    )


def _named(report: AmpReport) -> str:
    rank = f" (rank {report.rank})" if report.rank is not None else ""
    return f"{code(cut(report.nodeid, _LONGEST))}{rank}"


def _cell(column: TableColumn, report: AmpReport) -> str:
    text = _figure(column.text(report))
    return f"**{text}**" if column.verdict(report) else text


def _figure(text: str) -> str:
    """Return a figure as Markdown."""
    if text == units.NOTHING:
        return text
    return _on_one_line(escaped(text.replace("->", "\N{RIGHTWARDS ARROW}")))


def _on_one_line(markdown: str) -> str:
    """Return text that a narrow column of a table does not tear apart."""
    return markdown.replace(" ", "&#160;")


def _outcome(report: AmpReport) -> str:
    return f"{_SIGNS[kind_of(report)]} {outcome_of(report).word}"


def _test(report: AmpReport) -> str:
    """Return the section of a test: its gates, findings, notes, baseline, and how to repeat it."""
    lines = [f"### {_outcome(report)} {_named(report)}", ""]
    if reason := why_nothing(report):
        lines += [escaped(reason), ""]
    if report.asked:
        heads = ["gate", "", "measured", "threshold", "why"]
        lines += [*table(heads, map(_gate, report.asked)), ""]
    if points := [f"- {each}" for each in _points(report)]:
        lines += [*points, ""]
    lines.append(block(_command(report), "sh"))
    return "\n".join(lines)


def _gate(gate: Gate) -> list[str]:
    value, threshold = (
        units.NOTHING if each is None else in_units(gate.name, each)
        for each in (gate.value, gate.threshold)
    )
    verdict = _on_one_line(f"{_SIGNS[gate.verdict]} {gate.word}")
    measured = _figure(f"{value} {interval(gate)}".rstrip())
    return [gate.name, verdict, measured, _figure(threshold), escaped(gate.reason)]


def _points(report: AmpReport) -> Iterator[str]:
    """Yield what else there is to say of a test, a line each."""
    for finding in in_order(report):
        yield _finding(report, finding)
    for note in report.notes:
        yield f"note: {escaped(note)}"
    if report.baseline is not None:
        yield f"compared with {escaped(str(report.baseline))}"


def _finding(report: AmpReport, finding: Finding) -> str:
    module = f" in {code(finding.module)}" if finding.module else ""
    location = f" ({code(finding.location)})" if finding.location else ""
    part = part_in(report, finding)
    said = f"{finding.severity} **{finding.code}** {finding.name}{module}{location}"
    return f"{said}{', ' if part else ''}{part}: {escaped(finding.text)}"


def _command(report: AmpReport) -> str:
    """Return the command that runs the test alone, with the options of this run."""
    words = ["pytest", report.nodeid]
    for name, setting in report.settings.items():
        entry, value = settings.BY_NAME.get(name), settings.written(name, setting.value)
        if entry is None or setting.source not in ("cli", "override"):
            continue
        if setting.source == "override":
            words += ["--amp-override", f"{name}={value}"]
        else:
            words.append(entry.flag if entry.switch else f"{entry.flag}={value}")
    return shlex.join(words)


def _where(reports: Sequence[AmpReport], named: Mapping[str, Any]) -> str:
    """Return where the tests were measured, the commit, and the command of the whole run."""
    lines = [f"- {escaped(text_of(line))}" for line in heading(reports, 100_000, 0, {})]
    commit, branch = (named.get(name) for name in ("commit", "branch"))
    if commit:
        changed = ", with changes that are not committed" if named.get("dirty") else ""
        of = f" of {code(str(branch))}" if branch else ""
        lines.append(f"- commit {code(str(commit)[:10])}{of}{changed}")
    if command := named.get("command"):
        lines.append(f"- {code(cut(str(command), _LONGEST))}")
    return "\n".join(lines)


def _passing(reports: Sequence[AmpReport], columns: Sequence[TableColumn]) -> Iterator[str]:
    """Yield the table of the tests that have figures, and a line about each other one."""
    measured = [each for each in reports if not why_nothing(each)]
    if measured:
        yield from _table(measured, columns)
        yield ""
    for report in reports:
        if reason := why_nothing(report):
            yield f"- {_outcome(report)} {_named(report)}: {escaped(reason)}"
        for point in _points(report):
            yield f"- {code(report.nodeid)}: {point}"
