"""``pytest-amp compare A B``: two saved runs, test by test."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from pytest_amp import settings
from pytest_amp.commands import (
    FINE,
    INCONCLUSIVE,
    NO_BASELINE,
    REGRESSION,
    USAGE,
    beside,
    take_storage,
)
from pytest_amp.judge.comparison import compared
from pytest_amp.record import store
from pytest_amp.record.baseline import NoBaseline, meant, origin
from pytest_amp.record.columns import key
from pytest_amp.record.store import Broken, Run
from pytest_amp.results import COMPARED, AmpReport, Gate

HELP = "two saved runs, test by test"
_WORDS = {
    "pass": "ok", "fail": "FAILED", "inconclusive": "no answer", "not_gated": "",
}  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    for name, what in (("a", "the older"), ("b", "the newer")):
        parser.add_argument(name, metavar=name.upper(),
                            help=f"{what}: a run's number, files, a folder or a glob")  # fmt: skip
    take_storage(parser)
    parser.add_argument("--fail", default="", metavar="METRIC:PCT",
                        help="what may get worse at most: speedup:10%%,memory:5%%")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="the newer reports, with these gates")


def run(options: argparse.Namespace) -> int:
    try:
        allowed = settings.parse(settings.entry_for("compare_fail"), options.fail)
        root = store.folder(options.storage)
        older, newer = (_runs(root, each) for each in (options.a, options.b))
    except NoBaseline as error:
        sys.stderr.write(f"pytest-amp: {error}\n")
        return NO_BASELINE
    except (ValueError, OSError) as error:
        sys.stderr.write(f"pytest-amp: {error}\n")
        return USAGE
    before = {key(report.to_dict()): (run, report) for run, report in older}
    now = {key(report.to_dict()): report for _, report in newer}
    alone = [(report, options.b) for same, report in now.items() if same not in before]
    alone += [(report, options.a) for same, (_, report) in before.items() if same not in now]
    found = [
        compared(report, before[same][1], origin(*before[same]), allowed)
        for same, report in now.items()
        if same in before
    ]
    if options.json:
        print(json.dumps([each.to_dict() for each in found], indent=1))
    else:
        for line in _shown(found):
            print(line)
    for report, where in alone:
        place = report.environment
        on = f" on {place.device} in {place.dtype}" if place else ""
        sys.stderr.write(
            f"pytest-amp: {store.shown(report.nodeid + on)} is in {store.shown(where)} alone\n"
        )
    verdicts = {gate.verdict for report in found for gate in _gates(report)}
    if "fail" in verdicts:
        return REGRESSION
    if not found:
        return NO_BASELINE
    return INCONCLUSIVE if "inconclusive" in verdicts else FINE


def _runs(root: Path, reference: str) -> list[tuple[Run, AmpReport]]:
    """All measured reports of the runs that are meant, the oldest first."""
    problems: list[str] = []
    found = []
    for each in meant(root, reference, problems):
        for nodeid in each.tests:
            try:
                report = each.report(nodeid)
            except Broken as error:
                problems.append(str(error))
                continue
            if report.arms:
                found.append((each, report))
    for problem in problems:
        sys.stderr.write(f"pytest-amp: {problem}\n")
    return sorted(found, key=lambda pair: pair[1].started)


def _gates(report: AmpReport) -> Iterable[Gate]:
    return (gate for gate in report.gates if gate.name in COMPARED)


def _shown(reports: Iterable[AmpReport]) -> Iterator[str]:
    for report in reports:
        yield store.shown(report.nodeid)
        for gate in _gates(report):
            name = gate.name.removeprefix("compare:")
            yield beside(f"  {name:<7}  {_WORDS[gate.verdict]:<9}  ", gate.reason)
        yield beside("  since    ", str(report.baseline))
        yield ""
