"""A test's figures over its runs, with where they stepped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from pytest_amp import units


class Metric(NamedTuple):
    """A column of the history that is followed, and how people read it."""

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


class Point(NamedTuple):
    """A stored result. `started`: the day; `values`: of metrics and bounds, NaN for none."""

    run: str
    started: str
    verdict: str
    torch: str
    values: Mapping[str, float]


class Step(NamedTuple):
    """Where a metric stepped. `place`: of the first point behind it, in the trend.

    `before`, `after`: means. `with_it`: what else changed between the two points, a text each.
    """

    place: int
    before: float
    after: float
    with_it: tuple[str, ...]

    @property
    def change(self) -> str:
        """In percent, with its sign."""
        return units.signed(self.after / self.before - 1 if self.before else None)


class Trend(NamedTuple):
    """What may be compared: a test's results on one device in one dtype, the oldest first.

    `name`: the test, its place, and its settings where these tell it from another trend.
    `steps`: by a metric's column.
    """

    name: str
    points: Sequence[Point]
    steps: Mapping[str, Sequence[Step]]

    def known(self, column: str) -> list[int]:
        """The places of the points that have the metric."""
        return [
            place
            for place, point in enumerate(self.points)
            if math.isfinite(point.values.get(column, math.nan))
        ]

    def steps_in_words(self, metric: Metric) -> list[str]:
        """Its steps: ``run 0013 of 2026-01-13: 2.01x -> 1.61x (-20%), with torch ...``."""
        found = []
        for step in self.steps.get(metric.column, ()):
            point = self.points[step.place]
            figures = units.change(metric.shown(step.before), metric.shown(step.after))
            cause = f", with {', '.join(step.with_it)}" if step.with_it else ""
            found.append(f"run {point.run} of {point.started}: {figures} ({step.change}){cause}")
        return found
