"""Write the table of results: a row for each test, on one line if there is room for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pytest_amp import units
from pytest_amp.render.text import (
    BAD,
    BOLD,
    GAP,
    PLAIN,
    UNSURE,
    Line,
    Span,
    ascii_only,
    cut,
    ever_shorter,
    shorten,
    split_nodeid,
)
from pytest_amp.render.verdicts import both_arms, outcome_of, why_nothing
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import arm_names

_INDENT = "    "
_LONGEST_CELL = 24
_LEAST_NAME = 26
_MARKUP = {"fail": BAD, "inconclusive": UNSURE}


def _step_time(report: AmpReport) -> str:
    fp32, amp = (units.duration(run.step_time_s if run else None) for run in both_arms(report))
    return units.change(fp32, amp)


def _speedup(report: AmpReport) -> str:
    """Return the speedup with its interval, or with the number of pairs if they were too few."""
    found = report.speedup
    if found is None or found.low is not None:
        return str(found or units.NOTHING)
    return f"{found} ({units.plural(found.pairs, 'pair')})"


def _memory(report: AmpReport) -> str:
    fp32, amp = (units.size(run.peak_bytes if run else None) for run in both_arms(report))
    return units.change(fp32, amp)


def _loss_diff(report: AmpReport) -> str:
    amp = report.arms.get("amp")
    losses = [loss for series in amp.losses_by_key.values() for loss in series] if amp else []
    strange = next((loss for loss in losses if not math.isfinite(loss)), None)
    if strange is not None:
        return f"{strange}"
    passed = [gate for gate in report.gates if (gate.name, gate.verdict) == ("loss_diff", "pass")]
    if passed and report.loss_diff is not None and report.loss_diff > (passed[0].threshold or 0):
        return "<atol"  # near zero, a relative difference says nothing
    return units.share(report.loss_diff)


def _scaler(report: AmpReport) -> str:
    amp = report.arms.get("amp")
    parts = [units.power(amp.scales[-1])] if amp and amp.scales else []
    if amp and amp.skipped_steps:
        parts.append(units.plural(amp.skipped_steps, "skip"))
    return ", ".join(parts) or units.NOTHING


def _since(report: AmpReport) -> str:
    """Return the speedup's change since the baseline."""
    changes = [gate.value for gate in report.gates if gate.name == "compare:speedup"]
    return units.signed(changes[0]) if changes else units.NOTHING


@dataclass(frozen=True)
class TableColumn:
    """A column of the table.

    Attributes:
        title: its title.
        align: the side that its cells stand on.
        text: returns a test's figure.
        gates: the gates whose verdicts colour the figure.
    """

    title: str
    align: Literal["<", ">"]
    text: Callable[[AmpReport], str]
    gates: tuple[str, ...] = ()

    def verdict(self, report: AmpReport) -> str:
        """Return the gravest verdict of its gates, "fail" or "inconclusive"; "" if all are well."""
        verdicts = {gate.verdict for gate in report.gates if gate.name in self.gates}
        return next((each for each in _MARKUP if each in verdicts), "")

    def span(self, report: AmpReport) -> Span:
        """Return a test's cell in its colour."""
        markup = _MARKUP.get(self.verdict(report), PLAIN)
        return Span(cut(self.text(report), _LONGEST_CELL), markup)


_SPEEDUP = TableColumn(
    "speedup", "<", _speedup,
    ("speedup", "compare:speedup"),
)  # fmt: skip
COLUMNS = (
    TableColumn("step time", ">", _step_time),
    _SPEEDUP,
    TableColumn("memory", ">", _memory, ("memory_reduction", "compare:memory")),
    TableColumn("loss diff", ">", _loss_diff, ("loss_diff", "compare:loss")),
    TableColumn("coverage", ">", lambda report: units.share(report.coverage), ("coverage",)),
    TableColumn("scaler", "<", _scaler, ("skipped_steps",)),
)
_RECIPES = TableColumn("recipes", "<", lambda report: units.change(*_recipes(report)))
_SINCE = TableColumn("since", ">", _since, ("compare:speedup",))


def columns_of(reports: Sequence[AmpReport]) -> tuple[TableColumn, ...]:
    """Return the columns: recipes if a test chose any, and changes if a test has a baseline."""
    chosen = any(
        arm_names(report.arms)["amp"] != "amp"
        for report in reports
        if not any(arm.model for arm in report.arms.values())
    )
    since = any(report.baseline for report in reports)
    return (*(_RECIPES,) * chosen, *COLUMNS, *(_SINCE,) * since)


def _recipes(report: AmpReport) -> tuple[str, str]:
    fp32, amp = (run.recipe if run else None for run in both_arms(report))
    return fp32 or units.NOTHING, amp or units.NOTHING


@dataclass(frozen=True)
class _Layout:
    """Which cells stand on which line of a row, and how wide they are.

    Attributes:
        columns: the columns of figures.
        rows: the titles of the cells on each line of a row.
        reasons: the same for a test that has a reason instead of figures.
        sizes: the width of each cell, by title.
    """

    columns: Sequence[TableColumn]
    rows: Sequence[Sequence[str]]
    reasons: Sequence[Sequence[str]]
    sizes: Mapping[str, int]

    def render(self, cells: Mapping[str, Span], *, reason: bool = False) -> Iterator[Line]:
        """Yield the lines of a row.

        Args:
            cells: the cells by title.
            reason: whether the row has a reason instead of figures.
        """
        align = {column.title: column.align for column in self.columns}
        for number, titles in enumerate(self.reasons if reason else self.rows):
            line = [Span(_INDENT if number else "")]
            for title in titles:
                cell = cells.get(title, Span(""))
                space = Span(" " * (self.sizes[title] - len(cell.text)))
                gap = Span(GAP if len(line) > 1 else "")
                line += [gap, space, cell] if align.get(title) == ">" else [gap, cell, space]
            yield tuple(line)

    @property
    def width(self) -> int:
        """The width of the longest line of a row."""
        return max(
            len(_INDENT) * bool(number)
            + sum(self.sizes[title] for title in titles)
            + len(GAP) * (len(titles) - 1)
            for number, titles in enumerate(self.rows)
        )


def table(reports: Sequence[AmpReport], width: int) -> Iterator[Line]:
    """Yield the lines of the table, with the tests of a file below its path."""
    files: dict[str, list[AmpReport]] = {}
    for report in reports:
        files.setdefault(split_nodeid(ascii_only(report.nodeid))[0], []).append(report)
    layout = _layout(reports, width)
    titles = ["test", *(column.title for column in layout.columns), "verdict"]
    yield from layout.render({title: Span(title, BOLD) for title in titles})
    yield (Span("-" * layout.width),)
    for path, tests in files.items():
        if path:
            fitting = (text for text in ever_shorter(path) if len(text) <= width)
            yield (Span(next(fitting, cut(path, width))),)
        for report in tests:
            yield from _row(report, layout)


def _row(report: AmpReport, layout: _Layout) -> Iterator[Line]:
    outcome = outcome_of(report)
    suffix = _occasion(report)
    path, name = split_nodeid(ascii_only(report.nodeid))
    indent = GAP if path else ""
    room = layout.sizes["test"]
    name = indent + shorten(name, room - len(indent) - len(suffix)) + suffix
    cells = {"test": Span(cut(name, room)), "verdict": Span(outcome.word, outcome.markup)}
    if reason := why_nothing(report):
        cells["reason"] = Span(cut(reason, layout.sizes["reason"]))
    else:
        cells |= {column.title: column.span(report) for column in layout.columns}
    yield from layout.render(cells, reason=bool(reason))


def _layout(reports: Sequence[AmpReport], width: int) -> _Layout:
    """Lay out a row on one line if there is room; else put the name first, the figures below it."""
    columns = columns_of(reports)
    titles = [column.title for column in columns]
    sizes = {
        column.title: max(len(column.title), *(len(column.span(report).text) for report in reports))
        for column in columns
    }
    figures = sum(sizes.values()) + len(GAP) * (len(sizes) - 1)
    sizes["verdict"] = max(len("verdict"), *(len(outcome_of(report).word) for report in reports))
    longest = max(
        len(GAP + split_nodeid(ascii_only(report.nodeid))[1] + _occasion(report))
        for report in reports
    )
    room = width - figures - sizes["verdict"] - 2 * len(GAP)
    if room >= min(longest, _LEAST_NAME):
        sizes |= {"test": min(longest, room), "reason": figures}
        whole = [["test", *titles, "verdict"]], [["test", "reason", "verdict"]]
        return _Layout(columns, *whole, sizes)
    beside = sizes["speedup"] + sizes["verdict"] + 2 * len(GAP)
    below = len(_INDENT) + figures - sizes["speedup"] - len(GAP)
    sizes["test"] = min(width, max(longest + beside, below)) - beside
    sizes["reason"] = width - len(_INDENT)
    first = ["test", "speedup", "verdict"]
    rest = [title for title in titles if title != _SPEEDUP.title]
    return _Layout(columns, [first, *_flowed(rest, sizes, width)], [first, ["reason"]], sizes)


def _flowed(titles: Sequence[str], sizes: Mapping[str, int], width: int) -> list[list[str]]:
    """Return the titles of the figures below the name, on as few lines as they fit."""
    lines: list[list[str]] = []
    used = width
    for title in titles:
        used += len(GAP) + sizes[title]
        if used > width:
            lines.append([])
            used = len(_INDENT) + sizes[title]
        lines[-1].append(title)
    return lines


def _occasion(report: AmpReport) -> str:
    attempt = f" (attempt {report.attempt})" if report.attempt > 1 else ""
    return attempt if report.rank is None else f"{attempt} (rank {report.rank})"
