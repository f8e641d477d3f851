"""``pytest-amp html``: write the page of ``--amp-html`` from stored results."""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_amp import __version__, units
from pytest_amp.cli.console import FINE, NO_BASELINE, USAGE, complain, show, take_storage
from pytest_amp.provenance import now
from pytest_amp.render import html
from pytest_amp.storage import store
from pytest_amp.storage.baseline import NEWEST, NoBaseline, index_of, origin
from pytest_amp.storage.newest import newest

HELP = "a page of stored results, with figures and history, in one file"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("reference", nargs="?", default=NEWEST, metavar="RUN",
                        help="a run's number, files, a folder or a glob; by default the newest "
                        "result of each test in the storage")  # fmt: skip
    take_storage(parser)
    parser.add_argument("--output", "-o", default="amp.html", metavar="PATH",
                        help="where to write it (default: %(default)s)")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Write the page and return the exit code."""
    if missing := html.missing():
        complain(missing)
        return USAGE
    from pytest_amp.storage import trends

    try:
        root = store.folder(options.storage)
        with index_of(root, options.reference, Path.cwd()) as index:
            found = list(newest(index))
            problems = index.warnings
        for problem in problems:
            complain(problem)
        if not found:
            where = root.absolute() if options.reference == NEWEST else options.reference
            complain(f"there is no result in {store.printable(where)}")
            return NO_BASELINE
        stored = trends.of_storage(root, [each.report for each in found])
        results = [
            html.Result(each.report, stored.get(each.key), str(origin(each.run, each.report)))
            for each in found
        ]
        html.write(options.output, html.page(results, None, now(), __version__))
    except NoBaseline as error:
        complain(str(error))
        return USAGE
    except (ValueError, OSError) as error:
        complain(str(error))
        return USAGE
    show(f"{options.output}: {units.plural(len(found), 'test')}")
    return FINE
