"""``pytest-amp plot``: draw the history of speedup, memory and loss."""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_amp import extras, units
from pytest_amp.cli.console import (
    FINE,
    NO_BASELINE,
    USAGE,
    chosen,
    complain,
    nothing,
    show,
    take_history,
)
from pytest_amp.storage import store

HELP = "the history of speedup, memory and loss, as a picture"
_MOST = 40


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    take_history(parser)
    parser.add_argument("--output", "-o", default="amp-history.svg", metavar="PATH",
                        help="svg, png or pdf, by its ending (default: %(default)s)")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Draw the chosen history into a file and return the exit code."""
    if missing := extras.missing("html", "plots need", "matplotlib"):
        complain(missing)
        return USAGE
    from pytest_amp.render import trend_plots
    from pytest_amp.storage import trends as stored

    path = Path(options.output)
    try:
        drawn = [
            trend._replace(name=store.printable(trend.name))
            for trend in stored.of_frame(chosen(options)).values()
            if len(trend.points) > 1
        ]
        if not drawn:
            complain(f"there are fewer than two results{nothing(options)}")
            return NO_BASELINE
        if len(drawn) > _MOST:
            complain(f"{len(drawn)} tests are too many to draw: name some")
            return USAGE
        path.parent.mkdir(parents=True, exist_ok=True)
        trend_plots.save(path, drawn)
    except (ValueError, OSError) as error:
        complain(str(error))
        return USAGE
    show(f"{path}: {units.plural(len(drawn), 'test')}")
    return FINE
