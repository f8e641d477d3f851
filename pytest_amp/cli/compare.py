"""``pytest-amp compare A B``: compare two saved runs, test by test."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

from pytest_amp import units
from pytest_amp.cli import acknowledge
from pytest_amp.cli.acknowledge import Compared
from pytest_amp.cli.console import (
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
from pytest_amp.render.verdicts import why_nothing
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import COMPARED, Gate
from pytest_amp.rules import registry
from pytest_amp.settings import table as settings
from pytest_amp.storage import acknowledgements, store
from pytest_amp.storage.acknowledgements import may_be
from pytest_amp.storage.baseline import Baselines, NoBaseline, index_of
from pytest_amp.storage.key import seconds
from pytest_amp.storage.newest import Result, newest

HELP = "two saved runs, test by test"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    for name, what in (("a", "the older"), ("b", "the newer")):
        parser.add_argument(name, metavar=name.upper(),
                            help=f"{what}: a run's number, files, a folder or a glob")  # fmt: skip
    take_storage(parser)
    parser.add_argument("--fail", action="append", default=[], metavar="METRIC:PCT",
                        help="largest change for the worse: speedup:10%%,memory:5%%")  # fmt: skip
    acknowledge.arguments(parser)
    parser.add_argument("--json", action="store_true", help="the newer reports, with these gates")


def run(options: argparse.Namespace) -> int:
    """Compare the newer run's tests with the older's, and print each gate.

    Returns:
        The exit code: the gravest outcome of all tests.
    """
    try:
        allowed = settings.parse(settings.entry_for("compare_fail"), ",".join(options.fail))
    except ValueError as error:
        complain(f"--fail {str(error).removeprefix('compare_fail: ')}")
        return USAGE
    if wrong := acknowledge.misuse(options, limited=bool(allowed)):
        complain(wrong)
        return USAGE
    try:
        accepted = acknowledgements.load(Path(options.acknowledged))
        root = store.folder(options.storage)
        with index_of(root, options.b, Path.cwd()) as index:
            now, unmeasured = _told_apart(newest(index))
            problems = list(index.warnings)
    except (NoBaseline, ValueError, OSError) as error:
        complain(str(error))
        return USAGE
    pairs, missing = [], []
    # Without a limit nothing is gated, so runs that did not pass may be compared too.
    with closing(
        Baselines(root, options.a, timed="speedup" in allowed, any_verdict=not allowed)
    ) as baselines:
        for each in now:
            try:
                before, origin = baselines.of(each.report, but=each.run)
            except (NoBaseline, ValueError) as error:
                if not may_be("new", accepted, each.report.nodeid, each.report.started):
                    missing.append((each.report, str(error)))
            else:
                said = registry.beside_baseline(each.report, before)
                known = acknowledgements.applying(accepted, each.report, origin.started)
                after = compared(each.report, before, origin, allowed, said, known)
                pairs.append(Compared(after, before))
        others = baselines.others(each.report.nodeid for each in now)
        lost = {
            nodeid: measured
            for nodeid, measured in others.items()
            if not may_be("missing", accepted, nodeid, measured)
        }
        unmeasured = [
            each for each in unmeasured if each.nodeid in lost or each.nodeid not in others
        ]
        skipped = {report.nodeid for report in unmeasured}
        gone = [nodeid for nodeid in lost if nodeid not in skipped]
        problems += [text for text in baselines.warnings if text not in problems]
    for problem in problems:
        complain(problem)
    for report, why in (*missing, *((each, _why_unmeasured(each)) for each in unmeasured)):
        complain(f"{store.printable(report.nodeid)}: {why}")
    for nodeid in gone:
        complain(f"{store.printable(nodeid)} is only in {store.printable(options.a)}")
    counts = {
        "without a baseline": len(missing),
        "not measured": len(unmeasured),
        "gone": len(gone),
    }
    found = [report for report, _ in pairs]
    if options.json:
        show(json.dumps([each.to_dict() for each in found], indent=1))
    else:
        show("\n".join([*_lines(found), _counted(found, counts)]))
    if options.acknowledge is not None:
        return acknowledge.accept(options, pairs, [*lost], [each.nodeid for each, _ in missing])
    gates = [gate for report in found for gate in _gates(report)]
    if any(gate.verdict == "fail" for gate in gates):
        return REGRESSION
    if missing or not gates:
        return NO_BASELINE
    open_ = any(gate.verdict == "inconclusive" or gate.unmeasured for gate in gates)
    unanswered = open_ or (allowed and (unmeasured or gone))
    return INCONCLUSIVE if unanswered else FINE


def _told_apart(results: Iterable[Result]) -> tuple[list[Result], list[AmpReport]]:
    """Split the tests into measured results and tests whose newest result was not measured.

    An older result must not stand for a test that has since gone unmeasured.
    """
    by_test: dict[str, list[Result]] = {}
    for each in results:
        by_test.setdefault(each.report.nodeid, []).append(each)
    measured, unmeasured = [], []
    for tests in by_test.values():
        last = max(tests, key=lambda each: seconds(each.report.started)).report
        if last.arms:
            measured += [each for each in tests if each.report.arms]
        else:
            unmeasured.append(last)
    return measured, unmeasured


def _why_unmeasured(report: AmpReport) -> str:
    return f"its newest result was not measured ({report.verdict}: {why_nothing(report)})"


def _gates(report: AmpReport) -> Iterable[Gate]:
    return (gate for gate in report.gates if gate.name in COMPARED)


def _lines(reports: Iterable[AmpReport]) -> Iterator[str]:
    for report in reports:
        failed = [gate.name for gate in report.gates
                  if gate.verdict == "fail" and gate.name not in COMPARED]  # fmt: skip
        failed += [finding.code for finding in report.findings if finding.stands]
        own = f" (which failed: {', '.join(failed)})" if failed else ""
        yield store.printable(report.nodeid) + own
        for gate in _gates(report):
            name = gate.name.removeprefix("compare:")
            yield beside(f"  {name:<7}  {gate.word:<9}  ", gate.reason)
        yield beside("  since    ", str(report.baseline))
        yield ""


def _counted(reports: list[AmpReport], others: Mapping[str, int]) -> str:
    """Summarise: ``2 tests compared, 1 regression, 1 without a baseline``."""
    verdicts = Counter(
        "fail" if "fail" in verdicts else "open" if "inconclusive" in verdicts else "fine"
        for verdicts in ({gate.verdict for gate in _gates(report)} for report in reports)
    )
    parts = [
        f"{units.plural(len(reports), 'test')} compared",
        *([units.plural(verdicts["fail"], "regression")] if verdicts["fail"] else []),
        *([f"{verdicts['open']} without an answer"] if verdicts["open"] else []),
        *(f"{count} {what}" for what, count in others.items() if count),
    ]
    return ", ".join(parts)
