"""Describe how a test's figures went from run to run, and where they changed for good."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from pytest_amp import units


class Metric(NamedTuple):
    """A column of the history that is followed over time.

    Attributes:
        column: its name in the history.
        name: what people call it.
        shown: writes a value with its unit.
    """

    column: str
    name: str
    shown: Callable[[float | None], str]


METRICS = (
    Metric("speedup", "speedup", units.ratio),
    Metric("fp32_step_s", "fp32 step", units.duration),
    Metric("amp_step_s", "amp step", units.duration),
    Metric("amp_peak_bytes", "amp peak", units.size),
    Metric("amp_loss", "amp loss", units.number),
)
# The columns of a metric's interval, which is drawn behind it.
BOUNDS = {"speedup": ("speedup_low", "speedup_high")}


# Marks a run whose code had changes that were not committed.
DIRTY = "+"


class Point(NamedTuple):
    """A stored result.

    Attributes:
        run: the number of the run, or the name of its file.
        started: the day on which it started, as ISO 8601.
        verdict: how the test came out.
        torch: torch's version.
        values: the metrics and bounds by column; NaN for a missing one.
        dirty: whether the code had changes that were not committed, so that the commit does not say
            what was measured.
    """

    run: str
    started: str
    verdict: str
    torch: str
    values: Mapping[str, float]
    dirty: bool = False

    @property
    def label(self) -> str:
        """The run, marked if its code was dirty."""
        return f"{self.run}{DIRTY}" if self.dirty else self.run


class Step(NamedTuple):
    """A place where a metric stepped to another level and stayed there.

    Attributes:
        place: the index of the first point after the step in the trend's points.
        before: the mean before the step.
        after: the mean after it.
        with_it: what else changed between the two points, a text each.
    """

    place: int
    before: float
    after: float
    with_it: tuple[str, ...]

    @property
    def change(self) -> str:
        """The relative change in percent, with its sign."""
        return units.signed(self.after / self.before - 1 if self.before else None)


class Trend(NamedTuple):
    """The results of one test that may be compared: those on one device in one dtype.

    Attributes:
        name: the test and its device, and its settings if they distinguish it from another trend.
        points: the results, oldest first.
        steps: each metric's steps, by column.
    """

    name: str
    points: Sequence[Point]
    steps: Mapping[str, Sequence[Step]]

    def known(self, column: str) -> list[int]:
        """Return the indices of the points that have a value in this column."""
        return [
            place
            for place, point in enumerate(self.points)
            if math.isfinite(point.values.get(column, math.nan))
        ]

    def steps_in_words(self, metric: Metric) -> list[str]:
        """Return the steps as ``run 0013 of 2026-01-13: 2.01x -> 1.61x (-20%), with torch ...``."""
        found = []
        for step in self.steps.get(metric.column, ()):
            point = self.points[step.place]
            figures = units.change(metric.shown(step.before), metric.shown(step.after))
            cause = f", with {', '.join(step.with_it)}" if step.with_it else ""
            found.append(f"run {point.label} of {point.started}: {figures} ({step.change}){cause}")
        return found
