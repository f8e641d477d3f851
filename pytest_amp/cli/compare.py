"""``pytest-amp compare A B``: compare two saved runs, test by test."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import cast

from pytest_amp import provenance, units
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
from pytest_amp.results.acknowledged import Accepted
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import COMPARED, Gate
from pytest_amp.rules import registry
from pytest_amp.settings import table as settings
from pytest_amp.storage import acknowledgements, store
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
    parser.add_argument(
        "--acknowledge",
        metavar="REASON",
        help="accept what is beyond a limit or gone, in --acknowledged",
    )
    parser.add_argument(
        "--acknowledged",
        metavar="FILE",
        default=acknowledgements.FILE,
        help="what was accepted, to be committed (default: %(default)s)",
    )
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
    if options.acknowledge is not None and not (allowed and options.acknowledge.strip()):
        complain("--acknowledge needs a reason, and limits (--fail speedup:10%) that are exceeded")
        return USAGE
    try:
        file = Path(options.acknowledged)
        accepted = acknowledgements.load(file)
        root = store.folder(options.storage)
        with index_of(root, options.b, Path.cwd()) as index:
            now, unmeasured = _told_apart(newest(index))
            problems = list(index.warnings)
    except (NoBaseline, ValueError, OSError) as error:
        complain(str(error))
        return USAGE
    found, missing = [], []
    # Without a limit nothing is gated, so runs that did not pass may be compared too.
    with closing(
        Baselines(root, options.a, timed="speedup" in allowed, any_verdict=not allowed)
    ) as baselines:
        for each in now:
            try:
                before, origin = baselines.of(each.report, but=each.run)
            except (NoBaseline, ValueError) as error:
                missing.append((each.report, str(error)))
            else:
                said = registry.beside_baseline(each.report, before)
                known = acknowledgements.applying(accepted, each.report, origin)
                found.append(compared(each.report, before, origin, allowed, said, known))
        there = [report.nodeid for report in (*unmeasured, *(each.report for each in now))]
        gone = [
            nodeid
            for nodeid in baselines.others(there)
            if nodeid not in acknowledgements.gone(accepted)
        ]
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
    if options.json:
        show(json.dumps([each.to_dict() for each in found], indent=1))
    else:
        show("\n".join([*_lines(found), _counted(found, counts)]))
    if options.acknowledge is not None:
        return _acknowledge(file, found, gone, options.acknowledge.strip())
    gates = [gate for report in found for gate in _gates(report)]
    if any(gate.verdict == "fail" for gate in gates):
        return REGRESSION
    if missing or not gates:
        return NO_BASELINE
    open_ = any(gate.verdict == "inconclusive" or gate.unmeasured for gate in gates)
    unanswered = open_ or (allowed and (unmeasured or gone))
    return INCONCLUSIVE if unanswered else FINE


def _acknowledge(file: Path, reports: Sequence[AmpReport], gone: Sequence[str], reason: str) -> int:
    """Accept each change that is beyond its limit, and each test that is gone."""
    entries = [
        acknowledgements.entry_for_missing(nodeid, provenance.now(), reason) for nodeid in gone
    ]
    for report in reports:
        for gate in _gates(report):
            if gate.verdict == "fail":
                metric = cast("Accepted", gate.name.removeprefix("compare:"))
                entry = acknowledgements.entry(report, metric, reason)
                if entry is None:
                    complain(f"{store.printable(report.nodeid)}: its {metric} can't be accepted")
                    return REGRESSION
                entries.append(entry)
    if not entries:
        complain("nothing is beyond its limit or gone, so there is nothing to accept")
        return USAGE
    try:
        acknowledgements.add(file, entries)
    except (ValueError, OSError) as error:
        complain(str(error))
        return USAGE
    for each in entries:
        show(f"accepted: {each.metric} of {store.printable(each.test)}")
    show(f"written: {file}; commit it, so that the reason is reviewed with the change")
    return FINE


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
