"""``pytest-amp calibrate``: how often the speed gate is wrong here, and what it finds."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from pytest_amp import units
from pytest_amp.cli.console import FINE, INTERRUPTED, USAGE, argument, complain, show
from pytest_amp.settings import parsers

if TYPE_CHECKING:
    from pytest_amp.experiment.bisection import Say
    from pytest_amp.experiment.calibrate import Wanted
    from pytest_amp.experiment.job import Job
    from pytest_amp.judge.calibration import Calibration, Row
    from pytest_amp.progress import Progress

_TRIALS = argument(parsers.whole(1, 100_000))
_SECONDS = argument(parsers.number(parsers.SECONDS))
HELP = "how often the speed gate is wrong on this machine, and the smallest difference it finds"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "nodeid",
        nargs="?",
        default=None,
        help="the amp test whose step to time (default: a small step of its own)",
    )
    parser.add_argument("arguments", nargs="*", default=[],
                        help="arguments for pytest, after --: -- --amp-device=cuda:1")  # fmt: skip
    parser.add_argument("--trials", type=_TRIALS, default=20, metavar="N",
                        help="trials of each kind (default: %(default)s)")  # fmt: skip
    parser.add_argument("--trial-time", type=_SECONDS, default=3.0, metavar="SECONDS",
                        help="what one trial may take (default: %(default)s)")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Calibrate, say what was found, and return the exit code."""
    from pytest_amp.experiment.calibrate import SIZES, Wanted
    from pytest_amp.judge.calibration import Calibration

    wanted = Wanted(options.trials, options.trial_time, SIZES)
    found = Calibration(SIZES, 0.01)

    terminal = sys.stderr if sys.stderr.isatty() else None  # a test's run has another

    def instead(job: Job, progress: Progress, say: Say) -> None:
        _calibrate(job, progress, wanted, found, say, terminal)

    if options.nodeid is None and options.arguments:
        complain("calibrate: arguments for pytest need a test: pytest-amp calibrate NODEID -- ...")
        return USAGE
    if options.nodeid is None:
        code = _own_step(instead)
    else:
        from pytest_amp.cli import one_test

        ended = one_test.run("calibrate", options.nodeid, options.arguments, instead, show)
        code = INTERRUPTED if ended.interrupted else FINE if ended.well else USAGE
    if code != USAGE:
        for line in conclusion(found):
            show(line)
    return code


def _own_step(instead: Any) -> int:
    """Calibrate on a step of our own, and return the exit code."""
    from pytest_amp.errors import AmpError
    from pytest_amp.experiment.calibrate import own_job
    from pytest_amp.progress import Progress

    try:
        instead(own_job(), Progress(), show)
    except AmpError as error:
        complain(f"calibrate: {error}")
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    return FINE


def _calibrate(
    job: Job,
    progress: Progress,
    wanted: Wanted,
    found: Calibration,
    say: Say,
    terminal: TextIO | None,
) -> None:
    from pytest_amp.experiment.calibrate import calibrate

    found.error_rate = job.settings.error_rate
    kinds = 1 + len(wanted.sizes)
    at_most = units.duration(wanted.trials * kinds * wanted.trial_s)
    say(f"calibrating on {job.device.name()}: {job.nodeid}")
    say(f"{units.plural(wanted.trials, 'trial')} of {kinds} kinds, {at_most} at most")

    def tried(number: int, planted: float) -> None:
        if terminal is not None:
            kind = f"{units.share(planted)} slower" if planted else "unchanged"
            width = shutil.get_terminal_size().columns - 1
            terminal.write(f"\r\x1b[2K{f'trial {number} of {wanted.trials}, {kind}'[:width]}")
            terminal.flush()

    try:
        calibrate(job, progress, wanted, found, tried)
    finally:
        if terminal is not None:
            terminal.write("\r\x1b[2K")
            terminal.flush()


_HEAD = ("slower by", "measured", "unchanged passes", "fails", "open", "slower found", "missed",
         "open", "decided after")  # fmt: skip


def conclusion(found: Calibration) -> Iterator[str]:
    """Yield what the trials come to: a table, how often it was wrong, and a margin to choose."""
    from pytest_amp.judge.calibration import threshold_for

    rows = found.rows()
    if not rows:
        yield "no trial came to its end"
        return
    lines = [_HEAD, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    yield ""
    for line in lines:
        yield "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True))
    yield ""
    trials, wrong = sum(row.trials for row in rows), sum(row.wrong for row in rows)
    # An unchanged trial is asked for each size, and may be wrong at each.
    yield (
        f"{wrong} of {trials} answers wrong; error_rate {found.error_rate:g} allows "
        f"{found.error_rate * trials:.1f}"
    )
    if found.spread is not None:
        yield f"pairs of identical steps spread by {units.share(found.spread)} (interquartile)"
    smallest = found.smallest_found
    if smallest is None:
        yield (
            f"not even {units.share(rows[-1].planted)} is found reliably in this time: see "
            "pytest-amp doctor, or give it more (--trial-time, and max_time in the tests)"
        )
        return
    margin, slower = (
        units.share(1 - threshold_for(smallest.planted)),
        units.share(smallest.measured),
    )
    yield (
        f"the smallest difference that is found reliably: {slower}, after {smallest.pairs:.0f} "
        f"pairs ({units.duration(smallest.seconds)})"
    )
    yield (
        f"so set min_speedup {margin} below the speedup that you measure: an unchanged step then "
        f"passes, and one that is {slower} slower fails"
    )
    yield "what differs between processes is not in this: --amp-processes asks several"


def _cells(row: Row) -> tuple[str, ...]:
    after = "-"
    if row.pairs is not None:
        after = f"{row.pairs:.0f} pairs, {units.duration(row.seconds)}"
    return (
        units.share(row.planted),
        units.share(row.measured),
        str(row.unchanged["pass"]),
        str(row.unchanged["fail"]),
        str(row.unchanged["inconclusive"]),
        str(row.slower["fail"]),
        str(row.slower["pass"]),
        str(row.slower["inconclusive"]),
        after,
    )
