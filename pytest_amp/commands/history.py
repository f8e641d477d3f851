"""``pytest-amp history``: what each test measured over time, and where it stepped."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_amp import units
from pytest_amp.commands import FINE, USAGE, is_meant, take_storage, take_tests
from pytest_amp.record import store

if TYPE_CHECKING:
    import pandas

HELP = "what each test measured over time, and where it stepped"
_VERSIONS = ("torch", "cuda", "cudnn", "driver")


class Metric(NamedTuple):
    """A column that is followed, as people read it."""

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


class Step(NamedTuple):
    """A metric's change point, with the first run after it and what changed with it."""

    metric: Metric
    run: str
    started: str
    before: float
    after: float
    with_it: tuple[str, ...]

    def __str__(self) -> str:
        change = units.signed(self.after / self.before - 1 if self.before else None)
        figures = units.change(self.metric.shown(self.before), self.metric.shown(self.after))
        cause = f", with {', '.join(self.with_it)}" if self.with_it else ""
        return f"run {self.run} of {self.started[:10]}: {figures} ({change}){cause}"


def arguments(parser: argparse.ArgumentParser) -> None:
    take_tests(parser)
    take_storage(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="all rows and columns as CSV")
    form.add_argument("--json", action="store_true", help="all rows and columns as JSON")


def run(options: argparse.Namespace) -> int:
    try:
        frame = _read(options.storage)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"pytest-amp: {error}\n")
        return USAGE
    if options.tests:
        frame = frame.loc[[is_meant(nodeid, options.tests) for nodeid in frame["nodeid"]]]
    if options.csv:
        sys.stdout.write(frame.to_csv(index=False))
    elif options.json:
        sys.stdout.write(frame.to_json(orient="records", date_format="iso", indent=1) + "\n")
    else:
        found = list(_shown(frame))
        where = store.shown(options.storage)
        meant = f" of {', '.join(map(store.shown, options.tests))}" if options.tests else ""
        print("\n".join(found) if found else f"no results{meant} in {where}")
    return FINE


def _read(storage: str) -> pandas.DataFrame:
    """The history; what could not be read of it goes to stderr."""
    from pytest_amp.record.frame import history

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = history(storage)
    for each in caught:
        sys.stderr.write(f"pytest-amp: {each.message}\n")
    return frame


def _shown(frame: pandas.DataFrame) -> Iterator[str]:
    """A paragraph per test, device, dtype and settings."""
    for _, rows in frame.groupby("key", observed=True, sort=False):
        last = rows.iloc[-1]
        place = f" on {last['device']} in {last['dtype']}" if _is_text(last["device"]) else ""
        yield f"{store.shown(last['nodeid'])}{place}"
        first, newest = (f"{rows['started'].iloc[place]:%Y-%m-%d}" for place in (0, -1))
        days = first if first == newest else f"{first} to {newest}"
        passed = int((rows["verdict"] == "pass").sum())
        yield (
            f"  {units.plural(len(rows), 'run')}, {days}, {passed} passed; "
            f"newest {last['run']}: {last['verdict']}"
        )
        for metric in METRICS:
            values = rows[metric.column].dropna()
            if not len(values):
                continue
            yield f"  {metric.name:<9}  {metric.shown(float(values.iloc[-1]))}"
            yield from (f"    {step}" for step in steps(rows, metric))
        yield ""


def steps(rows: pandas.DataFrame, metric: Metric) -> Iterator[Step]:
    """Where the metric stepped, the oldest first. `rows`: of one key, in their order."""
    from pytest_amp.record.change_points import change_points

    values = [float(value) for value in rows[metric.column]]
    for point in change_points(values):
        after = rows.iloc[point.index]
        earlier = rows.iloc[: point.index]
        before = earlier[earlier[metric.column].notna()].iloc[-1]
        yield Step(
            metric, after["run"], f"{after['started']:%Y-%m-%d}", point.before, point.after,
            tuple(_changed(before, after)),
        )  # fmt: skip


def _changed(before: Any, after: Any) -> Iterator[str]:
    """What else is different between two rows; the commit where no version is."""
    found = False
    for name in _VERSIONS:
        old, new = before[name], after[name]
        if _is_text(old) and _is_text(new) and old != new:
            found = True
            yield f"{name} {old} -> {new}"
    old, new = before["commit"], after["commit"]
    if not found and _is_text(old) and _is_text(new) and old != new:
        yield f"commit {old[:7]} -> {new[:7]}"


def _is_text(value: object) -> bool:
    return isinstance(value, str)
