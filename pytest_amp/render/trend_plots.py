"""Draw how a test's metrics went from run to run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_amp.render import plots
from pytest_amp.render.text import cut
from pytest_amp.results.trend import BOUNDS, Point, Step, Trend

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RELEASE, STEP = "#9b59b6", "#808890"
_DRAWN = 200
# The room for a release's name: a share of the figure's width, and points of height.
_LABEL, _LINE = 0.3, 9

# By column, the title of the figure and the label of its axis.
_FIGURES = {
    "speedup": ("Speedup over time", "ratio"),
    "amp_peak_bytes": ("Amp's peak memory over time", ""),
    "amp_loss": ("Loss over time", "amp loss"),
}


def figures(trend: Trend) -> dict[str, str]:
    """Return, as SVG by title, a figure of each metric that at least two results have."""
    return {
        title: plots.drawn(partial(_over_time, trend=trend, column=column))
        for column, (title, _) in _FIGURES.items()
        if len(trend.known(column)) > 1
    }


def save(path: Path, trends: Sequence[Trend]) -> None:
    """Draw trends into a file, one row each; the ending of its name sets the format.

    Raises:
        ValueError: matplotlib does not write that format.
        OSError: the file can't be written.
    """
    with plots.on_paper():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.4 * len(_FIGURES), 2.6 * len(trends)), layout="constrained")
        rows = figure.subfigures(len(trends), squeeze=False)
        for row, trend in zip(rows[:, 0], trends, strict=True):
            row.suptitle(cut(trend.name, 100), fontsize=10)
            axes = row.subplots(1, len(_FIGURES))
            for place, (column, (title, _)) in zip(axes, _FIGURES.items(), strict=True):
                taken = _over_time(place, trend, column)
                place.set_title(title, pad=6 + taken)
        figure.savefig(path)


def _over_time(axes: Axes, trend: Trend, column: str) -> int:
    """Draw the newest runs of one metric; those that did not pass are open circles.

    Returns:
        The height that labels take above the axes, in points.
    """
    places = trend.known(column)[-_DRAWN:]
    if len(places) < 2:
        axes.set_axis_off()
        return 0
    points = [trend.points[place] for place in places]
    label = _FIGURES[column][1]
    values = [point.values[column] for point in points]
    scale = 1.0
    if column == "amp_peak_bytes":
        scale, label = plots.in_bytes(max(values))
        values = [value / scale for value in values]
    seen = list(values)
    if column in BOUNDS:
        low, high = ([point.values.get(bound, math.nan) for point in points]
                     for bound in BOUNDS[column])  # fmt: skip
        axes.fill_between(range(len(points)), low, high, color=plots.AMP, alpha=0.15, linewidth=0)
        seen += filter(math.isfinite, (*low, *high))
    axes.plot(values, color=plots.AMP, linewidth=1)
    for passed, fill in ((True, plots.AMP), (False, "none")):
        chosen = [n for n, point in enumerate(points) if (point.verdict == "pass") is passed]
        axes.plot(chosen, [values[n] for n in chosen], "o", markersize=4, markerfacecolor=fill,
                  markeredgecolor=plots.AMP)  # fmt: skip
    taken = _mark_releases(axes, points)
    _mark_steps(axes, places, trend.steps.get(column, ()), scale)
    axes.set_ylabel(label)
    # Show at least 2% to either side of the middle: smaller changes are noise, and should look so.
    middle = (max(seen) + min(seen)) / 2
    half = max(0.55 * (max(seen) - min(seen)), 0.02 * abs(middle)) or 1.0
    axes.set_ylim(middle - half, middle + half)
    ends = [f"{cut(points[place].run, 16)}\n{points[place].started}" for place in (0, -1)]
    axes.set_xticks([0, len(points) - 1], ends)
    return taken


def _mark_releases(axes: Axes, points: Sequence[Point]) -> int:
    """Draw a dotted line where torch's release changed, and its name above, clear of the data.

    Returns:
        The height that the names take, in points.
    """
    last, level, taken = -1.0, 0, 0
    for place, (before, after) in enumerate(pairwise(points)):
        if before.torch == after.torch:
            continue
        at = (place + 0.5) / (len(points) - 1)
        level = (level + 1) % 3 if last >= 0 and at - last < _LABEL else 0
        last, taken = at, max(taken, _LINE * (level + 1))
        axes.axvline(place + 0.5, color=RELEASE, linestyle=":", linewidth=1)
        axes.annotate(f"torch {cut(after.torch, 16)}", (place + 0.5, 1),
                      xycoords=("data", "axes fraction"), xytext=(0, 2 + _LINE * level),
                      textcoords="offset points", va="bottom", fontsize=8,
                      ha="left" if at < _LABEL / 2 else "right" if at > 1 - _LABEL / 2 else
                      "center")  # fmt: skip
    return taken


def _mark_steps(axes: Axes, places: Sequence[int], steps: Sequence[Step], scale: float) -> None:
    """Draw the means between the steps, and say how large each step is."""
    seen = [step for step in steps if step.place > places[0]]
    if not seen:
        return
    edges = [0, *(places.index(step.place) for step in seen), len(places)]
    levels = [*(step.before for step in seen[:1]), *(step.after for step in seen)]
    for level, (left, right) in zip(levels, pairwise(edges), strict=True):
        axes.hlines(level / scale, left - 0.5, right - 0.5, color=STEP, linewidth=3, alpha=0.5)
    for step, place in zip(seen, edges[1:], strict=False):
        axes.axvline(place - 0.5, color=STEP, linewidth=1)
        axes.annotate(step.change, (place - 0.5, 0.5), xycoords=("data", "axes fraction"),
                      xytext=(5, 0), textcoords="offset points", fontsize=8)  # fmt: skip
