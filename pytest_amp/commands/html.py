"""``pytest-amp html``: the page of ``--amp-html``, made of what is stored."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pytest_amp import units
from pytest_amp.commands import FINE, NO_BASELINE, USAGE, take_storage
from pytest_amp.plain import now
from pytest_amp.record import store
from pytest_amp.record.baseline import NoBaseline, meant
from pytest_amp.record.columns import key
from pytest_amp.record.store import Broken, Run
from pytest_amp.report import html
from pytest_amp.results import AmpReport

HELP = "a page of stored results, with figures and history, in one file"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", nargs="?", default=None, metavar="RUN",
                        help="a run's number, files, a folder or a glob; by default the newest "
                        "result of each test in the storage")  # fmt: skip
    take_storage(parser)
    parser.add_argument("--output", "-o", default="amp.html", metavar="PATH",
                        help="where to write it (default: %(default)s)")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    if not html.available():
        sys.stderr.write(f"pytest-amp: {html.MISSING}\n")
        return USAGE
    from pytest_amp.record import trends

    problems: list[str] = []
    try:
        root = store.folder(options.storage)
        runs = meant(root, options.reference or str(root), problems)
        found = newest(runs, problems)
        results = trends.beside(found, trends.of_storage(root))
        last = max(runs, key=lambda each: each.started, default=None)
        about = {"commit": last.commit, "branch": last.branch, "dirty": last.dirty} if last else {}
        html.write(options.output, html.page(results, {**_NOTHING, **about}, now()))
    except NoBaseline:
        where = store.shown(options.reference or options.storage)
        sys.stderr.write(f"pytest-amp: no saved run in {where}\n")
        return NO_BASELINE
    except (ValueError, OSError) as error:
        sys.stderr.write(f"pytest-amp: {error}\n")
        return USAGE
    for problem in problems:
        sys.stderr.write(f"pytest-amp: {problem}\n")
    print(f"{Path(options.output)}: {units.plural(len(found), 'test')}")
    return FINE


_NOTHING = {"commit": None, "branch": None, "dirty": None, "command": None}


def newest(runs: list[Run], problems: list[str]) -> list[AmpReport]:
    """Of each test, device, dtype and settings the newest result, in the order of their names."""
    found: dict[str, tuple[str, Run, str]] = {}
    for each in runs:
        for nodeid, report in each.tests.items():
            try:
                same, started = key(report), str(report["started"])
            except (KeyError, TypeError, AttributeError) as error:
                problems.append(str(Broken(each.path, f"{store.shown(nodeid)}: {error}")))
                continue
            if same not in found or found[same][0] <= started:
                found[same] = started, each, nodeid
    reports = []
    for _, each, nodeid in found.values():
        try:
            reports.append(each.report(nodeid))
        except Broken as error:
            problems.append(str(error))
    return sorted(reports, key=lambda report: report.nodeid)
