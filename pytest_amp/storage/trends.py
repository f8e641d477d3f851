"""Turn the history into trends: what each test measured, run by run, and where it stepped."""

from __future__ import annotations

import itertools
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_amp.judge.comparison import VERSIONS
from pytest_amp.results.report import AmpReport
from pytest_amp.results.trend import BOUNDS, METRICS, Point, Step, Trend
from pytest_amp.storage.change_points import change_points
from pytest_amp.storage.columns import COLUMNS, NUMBERS, TEXTS
from pytest_amp.storage.frame import history
from pytest_amp.storage.key import MEASURING, PARTS, key
from pytest_amp.storage.store import SavedRun

if TYPE_CHECKING:
    import pandas

_THIS = "this run"


def of_storage(
    storage: Path, reports: Sequence[AmpReport] = (), run: Mapping[str, Any] | None = None
) -> dict[str, Trend]:
    """Return the trends of a storage, by key.

    Args:
        storage: the storage's folder.
        reports: if there are any, return the trends of these tests only.
        run: the run that the reports are from. If the storage does not have it yet, its reports are
            added at the end.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a page of results is not the place to list broken files
        frame = history(storage)
    if reports:
        frame = frame.loc[frame["key"].isin([key(each.to_dict()) for each in reports])]
    if run is not None and not (frame["run_id"] == run["id"]).any():
        frame = _joined(frame, reports, run)
    return of_frame(frame)


def of_frame(frame: pandas.DataFrame) -> dict[str, Trend]:
    """Return the trends of what `history` returned, or of rows chosen from it, by key."""
    groups = {str(same): rows for same, rows in frame.groupby("key", observed=True, sort=False)}
    names = _names(groups)
    return {same: _trend(names[same], rows) for same, rows in groups.items()}


def _names(keys: Iterable[str]) -> dict[str, str]:
    """Return a name for each key, with its settings if only they tell it from another key."""
    parts = {same: dict(zip(PARTS, json.loads(same), strict=False)) for same in keys}
    arms = {same: json.loads(same)[len(PARTS) :] for same in parts}
    plain = {same: _plainly(part, arms[same]) for same, part in parts.items()}
    shared = Counter(plain.values())
    found = {}
    for same, part in parts.items():
        name = plain[same]
        if shared[name] > 1:
            name += f" ({', '.join(f'{setting}={part[setting]}' for setting in MEASURING)})"
        found[same] = f"{name}, rank {part['rank']}" if part["rank"] else name
    return found


def _plainly(part: Mapping[str, Any], arms: Sequence[str]) -> str:
    """Name a test and its device; ``arms`` are the recipes, unless they are the usual ones."""
    if not part["device"]:
        return str(part["test"])
    reference, candidate = arms or (None, part["dtype"])
    against = f" against {reference}" if reference else ""
    return f"{part['test']} on {part['device']} in {candidate}{against}"


def _joined(
    frame: pandas.DataFrame, reports: Iterable[AmpReport], run: Mapping[str, Any]
) -> pandas.DataFrame:
    import pandas

    this = SavedRun(
        path=Path(_THIS), number=None, id=run["id"], started=run["started"],
        commit=run["commit"], branch=run["branch"], dirty=run["dirty"], tests={},
    )  # fmt: skip
    plain = (each.to_dict() for each in reports if each.speedup is not None)
    timed = {key(each): each for each in plain}  # of a test that was rerun, the last attempt
    if not timed:
        return frame
    rows = [{column.name: column.of(this, each) for column in COLUMNS} for each in timed.values()]
    new = pandas.DataFrame(rows)
    new["started"] = pandas.to_datetime(new["started"], utc=True)
    new = new.astype({column.name: float for column in NUMBERS})  # None is NaN
    texts = {column.name: object for column in TEXTS}  # each frame has categories of its own
    return pandas.concat([frame.astype(texts), new]) if len(frame) else new


def _trend(name: str, rows: pandas.DataFrame) -> Trend:
    """Make the trend of one key from its rows, in order."""
    drawn = [*(metric.column for metric in METRICS), *itertools.chain(*BOUNDS.values())]
    values = {column: rows[column].astype(float).tolist() for column in drawn}
    started = rows["started"].dt.strftime("%Y-%m-%d")
    points = [
        Point(
            run, day, _text(verdict), _text(torch), dict(zip(values, measured, strict=True)), dirty
        )
        for run, day, verdict, torch, dirty, *measured in zip(
            rows["run"],
            started,
            rows["verdict"],
            rows["torch"],
            rows["dirty"] == 1,
            *values.values(),
            strict=True,
        )
    ]
    return Trend(
        name=name,
        points=points,
        steps={each.column: tuple(_steps(rows, values[each.column])) for each in METRICS},
    )


def _steps(rows: pandas.DataFrame, values: Sequence[float]) -> Iterator[Step]:
    for found in change_points(values):
        known = [place for place in range(found.index) if values[place] == values[place]]
        before, after = rows.iloc[known[-1]], rows.iloc[found.index]
        yield Step(found.index, found.before, found.after, tuple(_changed(before, after)))


def _changed(before: Any, after: Any) -> Iterator[str]:
    """Yield what else differs between two rows: versions, flags and the commit."""
    for name in VERSIONS:
        old, new = _text(before[name]), _text(after[name])
        if old and new and old != new:
            yield f"{name} {old} -> {new}"
    flags, others = (dict(_flags(row)) for row in (before, after))
    for name in sorted({*flags, *others}):
        if flags.get(name) != others.get(name):
            yield f"{name} {flags.get(name)} -> {others.get(name)}"
    old, new = _text(before["commit"]), _text(after["commit"])
    if old and new and old != new:
        yield f"commit {old[:7]} -> {new[:7]}"
    if after["dirty"] == 1:
        yield "changes that were not committed"


def _flags(row: Any) -> Iterator[tuple[str, str]]:
    for each in _text(row["flags"]).split():
        name, _, value = each.partition("=")
        yield name, value


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
