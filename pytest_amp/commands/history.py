"""``pytest-amp history``: what each test measured over time, and where it stepped."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_amp.commands import (
    FINE,
    USAGE,
    beside,
    complain,
    is_meant,
    show,
    take_storage,
    take_tests,
)
from pytest_amp.record import store

if TYPE_CHECKING:
    import pandas

HELP = "what each test measured over time, and where it stepped"


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
        complain(str(error))
        return USAGE
    if options.tests:
        frame = frame.loc[[is_meant(nodeid, options.tests) for nodeid in frame["nodeid"]]]
    if options.csv:
        show(frame.to_csv(index=False).rstrip("\n"))
    elif options.json:
        show(frame.to_json(orient="records", date_format="iso", indent=1))
    else:
        from pytest_amp.record import trends
        from pytest_amp.report.trend_table import table

        found = list(trends.of_frame(frame).values())
        if found:
            show("\n".join(beside(head, text) if text else head for head, text in table(found)))
        else:
            meant = f" of {', '.join(map(store.shown, options.tests))}" if options.tests else ""
            show(f"no results{meant} in {store.shown(Path(options.storage).absolute())}")
    return FINE


def _read(storage: str) -> pandas.DataFrame:
    """The history; what could not be read of it goes to stderr."""
    from pytest_amp.record.frame import history

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = history(storage)
    for each in caught:
        complain(str(each.message))
    return frame
