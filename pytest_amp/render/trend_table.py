"""Write the table of ``pytest-amp history``: each test's newest figures, and its steps below."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from pytest_amp import units
from pytest_amp.render.text import GAP, cut
from pytest_amp.results.trend import DIRTY, METRICS, Trend


class TrendColumn(NamedTuple):
    """A column of the table.

    Attributes:
        title: its title.
        align: the side that its cells stand on.
        text: returns the text of a trend's cell.
    """

    title: str
    align: Literal["<", ">"]
    text: Callable[[Trend], str]


def _passed(trend: Trend) -> str:
    passed = sum(point.verdict == "pass" for point in trend.points)
    return f"{passed}/{len(trend.points)}"


def _last(trend: Trend) -> str:
    point = trend.points[-1]
    return f"{cut(point.run, 16)}{DIRTY * point.dirty} {point.started}"


def _newest(column: str) -> Callable[[Trend], float | None]:
    """Return a function that finds a trend's newest figure; the last run may not have one."""

    def of(trend: Trend) -> float | None:
        known = trend.known(column)
        return trend.points[known[-1]].values[column] if known else None

    return of


def _step_time(trend: Trend) -> str:
    fp32, amp = (_newest(column)(trend) for column in ("fp32_step_s", "amp_step_s"))
    return units.change(units.duration(fp32), units.duration(amp))


COLUMNS = (
    TrendColumn("passed", "<", _passed),
    TrendColumn("newest", "<", _last),
    TrendColumn("verdict", "<", lambda trend: trend.points[-1].verdict),
    TrendColumn("speedup", ">", lambda trend: units.ratio(_newest("speedup")(trend))),
    TrendColumn("step time", ">", _step_time),
    TrendColumn("amp peak", ">", lambda trend: units.size(_newest("amp_peak_bytes")(trend))),
    TrendColumn("amp loss", ">", lambda trend: units.number(_newest("amp_loss")(trend))),
)


def table(trends: Sequence[Trend]) -> Iterator[tuple[str, str]]:
    """Yield the lines of the table, each in two parts: only the second part may be wrapped."""
    rows = [[units.printable(column.text(trend)) for column in COLUMNS] for trend in trends]
    titles = [column.title for column in COLUMNS]
    widths = [max(map(len, cells)) for cells in zip(titles, *rows, strict=True)]
    yield _line(titles, widths), ""
    yield "-" * (len(GAP) + sum(widths) + len(GAP) * (len(widths) - 1)), ""
    for trend, row in zip(trends, rows, strict=True):
        yield cut(units.printable(trend.name), 300), ""
        yield _line(row, widths), ""
        for metric in METRICS:
            for step in trend.steps_in_words(metric):
                yield f"{2 * GAP}{metric.name:<9} stepped in ", units.printable(step)
    if any(point.dirty for trend in trends for point in trend.points):
        yield f"{DIRTY} with changes that were not committed", ""


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    placed = [
        f"{cell:{column.align}{width}}"
        for cell, column, width in zip(cells, COLUMNS, widths, strict=True)
    ]
    return (GAP + GAP.join(placed)).rstrip()
