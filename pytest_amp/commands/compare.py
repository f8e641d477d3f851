"""``pytest-amp compare A B``: two saved runs, test by test."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from pytest_amp import settings, units
from pytest_amp.commands import (
    FINE,
    INCONCLUSIVE,
    NO_BASELINE,
    REGRESSION,
    USAGE,
    beside,
    complain,
    show,
    take_storage,
)
from pytest_amp.judge.comparison import compared
from pytest_amp.record import store
from pytest_amp.record.baseline import Baselines, NoBaseline, index_of
from pytest_amp.record.newest import newest
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
    parser.add_argument("--fail", action="append", default=[], metavar="METRIC:PCT",
                        help="what may get worse at most: speedup:10%%,memory:5%%")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="the newer reports, with these gates")


def run(options: argparse.Namespace) -> int:
    try:
        allowed = settings.parse(settings.entry_for("compare_fail"), ",".join(options.fail))
    except ValueError as error:
        complain(f"--fail {str(error).removeprefix('compare_fail: ')}")
        return USAGE
    try:
        root = store.folder(options.storage)
        with index_of(root, options.b, Path.cwd()) as index:
            now = [result for result in newest(index) if result.report.arms]
            problems = list(index.warnings)
    except (NoBaseline, ValueError, OSError) as error:
        complain(str(error))
        return USAGE
    found, missing = [], {}
    # Without a limit nothing is gated, and runs that did not pass may be looked at, too.
    with closing(Baselines(root, options.a, any_verdict=not allowed)) as baselines:
        for each in now:
            try:
                before, origin = baselines.of(each.report, but=each.run)
            except (NoBaseline, ValueError) as error:
                missing[store.shown(each.report.nodeid)] = str(error)
            else:
                found.append(compared(each.report, before, origin, allowed))
        gone = baselines.others(each.key for each in now)
        problems += [text for text in baselines.warnings if text not in problems]
    for problem in problems:
        complain(problem)
    for nodeid, why in missing.items():
        complain(f"{nodeid}: {why}")
    for nodeid in gone:
        complain(f"{store.shown(nodeid)} is in {store.shown(options.a)} alone")
    if options.json:
        show(json.dumps([each.to_dict() for each in found], indent=1))
    else:
        show("\n".join([*_shown(found), _counted(found, len(missing), len(gone))]))
    return _code([gate for report in found for gate in _gates(report)], bool(missing))


def _code(gates: list[Gate], missing: bool) -> int:
    if any(gate.verdict == "fail" for gate in gates):
        return REGRESSION
    if missing or not gates:
        return NO_BASELINE
    open_ = any(gate.verdict == "inconclusive" or gate.unmeasured for gate in gates)
    return INCONCLUSIVE if open_ else FINE


def _gates(report: AmpReport) -> Iterable[Gate]:
    return (gate for gate in report.gates if gate.name in COMPARED)


def _shown(reports: Iterable[AmpReport]) -> Iterator[str]:
    for report in reports:
        failed = [gate.name for gate in report.gates
                  if gate.verdict == "fail" and gate.name not in COMPARED]  # fmt: skip
        failed += [finding.code for finding in report.findings if finding.stands]
        own = f" (which failed: {', '.join(failed)})" if failed else ""
        yield store.shown(report.nodeid) + own
        for gate in _gates(report):
            name = gate.name.removeprefix("compare:")
            word = _WORDS["inconclusive" if gate.unmeasured else gate.verdict]
            yield beside(f"  {name:<7}  {word:<9}  ", gate.reason)
        yield beside("  since    ", str(report.baseline))
        yield ""


def _counted(reports: list[AmpReport], missing: int, gone: int) -> str:
    """2 tests compared: 1 regression; 1 without a baseline"""
    verdicts = Counter(
        "fail" if "fail" in verdicts else "open" if "inconclusive" in verdicts else "fine"
        for verdicts in ({gate.verdict for gate in _gates(report)} for report in reports)
    )
    parts = [
        f"{units.plural(len(reports), 'test')} compared",
        *([units.plural(verdicts["fail"], "regression")] if verdicts["fail"] else []),
        *([f"{verdicts['open']} without an answer"] if verdicts["open"] else []),
        *([f"{missing} without a baseline"] if missing else []),
        *([f"{gone} gone"] if gone else []),
    ]
    return ", ".join(parts)
