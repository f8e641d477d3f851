"""``pytest-amp compare --acknowledge``: write down what is accepted, and why."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from pytest_amp import provenance
from pytest_amp.cli.console import FINE, REGRESSION, USAGE, complain
from pytest_amp.results.acknowledged import Accepted, Acknowledged
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import COMPARED
from pytest_amp.storage import acknowledgements, store


class Compared(NamedTuple):
    """A result with its comparing gates, and the baseline that they are about."""

    report: AmpReport
    stored: AmpReport


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--acknowledge",
        metavar="REASON",
        help="accept each change beyond its limit, for this reason",
    )
    parser.add_argument(
        "--acknowledge-tests",
        action="store_true",
        help="with --acknowledge: accept tests that are gone or new, too",
    )
    parser.add_argument(
        "--acknowledged",
        metavar="FILE",
        default=acknowledgements.FILE,
        help="the file that says what was accepted (default: %(default)s)",
    )


def misuse(options: argparse.Namespace, *, limited: bool) -> str | None:
    """Return what is wrong with the arguments; None if nothing is."""
    if options.acknowledge is None:
        needs = "--acknowledge-tests needs a reason: --acknowledge REASON"
        return needs if options.acknowledge_tests else None
    if not options.acknowledge.strip():
        return "--acknowledge needs a reason"
    if not limited and not options.acknowledge_tests:
        return "--acknowledge needs limits that are exceeded, such as --fail speedup:10%"
    return None


def accept(
    options: argparse.Namespace,
    compared: Sequence[Compared],
    missing: Sequence[str],
    new: Sequence[str],
) -> int:
    """Add what is beyond its limit to the file, and return the exit code.

    Args:
        options: the command's.
        compared: the results that were compared.
        missing: the tests that are not measured any more.
        new: the tests that have no baseline.
    """
    now, reason = provenance.now(), options.acknowledge.strip()
    entries = list(_changes(compared, now, reason))
    if options.acknowledge_tests:
        entry = acknowledgements.entry_for_test
        entries += [entry(each, "missing", now, reason) for each in missing]
        entries += [entry(each, "new", now, reason) for each in new]
    unacceptable = [each for each in entries if isinstance(each, str)]
    for text in unacceptable:
        complain(text)
    if unacceptable:
        return REGRESSION
    if not entries:
        more = "; --acknowledge-tests accepts tests that are gone or new" if missing or new else ""
        complain(f"nothing is beyond its limit, so there is nothing to accept{more}")
        return USAGE
    file = Path(options.acknowledged)
    accepted = [each for each in entries if isinstance(each, Acknowledged)]
    try:
        acknowledgements.add(file, accepted)
    except (ValueError, OSError) as error:
        complain(str(error))
        return USAGE
    for each in accepted:
        complain(f"accepted until {each.until[:10]}: {each.metric} of {store.printable(each.test)}")
    complain(f"written: {file.resolve()}; commit it. pytest reads it in its root directory")
    return FINE


def _changes(compared: Sequence[Compared], now: str, reason: str) -> Iterable[Acknowledged | str]:
    """Yield an entry for each change beyond its limit, or a sentence if it can't be accepted."""
    for report, stored in compared:
        for gate in report.gates:
            if gate.name in COMPARED and gate.verdict == "fail":
                metric = cast("Accepted", gate.name.removeprefix("compare:"))
                entry = acknowledgements.entry(report, stored, metric, now, reason)
                yield entry or f"{store.printable(report.nodeid)}: its {metric} can't be accepted"
