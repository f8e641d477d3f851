"""``pytest-amp history``: show what each test measured over time, and where it stepped."""

from __future__ import annotations

import argparse

from pytest_amp.cli.console import (
    FINE,
    USAGE,
    beside,
    chosen,
    complain,
    nothing,
    show,
    take_history,
)

HELP = "what each test measured over time, and where it stepped"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    take_history(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="all rows and columns as CSV")
    form.add_argument("--json", action="store_true", help="all rows and columns as JSON")


def run(options: argparse.Namespace) -> int:
    """Print the chosen history as a table, CSV or JSON, and return the exit code."""
    try:
        frame = chosen(options)
    except (ValueError, OSError) as error:
        complain(str(error))
        return USAGE
    if options.csv:
        show(frame.to_csv(index=False).rstrip("\n"))
    elif options.json:
        show(frame.to_json(orient="records", date_format="iso", indent=1))
    else:
        from pytest_amp.render.trend_table import table
        from pytest_amp.storage import trends

        found = list(trends.of_frame(frame).values())
        if found:
            show("\n".join(beside(head, text) if text else head for head, text in table(found)))
        else:
            show(f"no results{nothing(options)}")
    return FINE
