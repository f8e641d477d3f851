"""``pytest-amp tune``: find the recipe under which a test's step is fastest, and still safe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_amp import extras, units
from pytest_amp.cli.console import INTERRUPTED, argument, complain, show, take_test
from pytest_amp.errors import AmpError
from pytest_amp.settings import parsers

if TYPE_CHECKING:
    from pytest_amp.experiment.bisection import Say

_COUNT = argument(parsers.whole(1, 1_000_000))
_SECONDS = argument(parsers.number(parsers.SECONDS))
HELP = "the fastest of the recipes that keep a test safe, and its settings"
FOUND, NOTHING_TO_ADOPT, USAGE = 0, 1, 2


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    take_test(parser)
    parser.add_argument("--trials", type=_COUNT, default=20, metavar="N",
                        help="trials in all, with those of earlier runs of the study "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--timeout", type=_SECONDS, default=None, metavar="SECONDS",
                        help="begin no trial after this time")  # fmt: skip
    parser.add_argument("--storage", default=None, metavar="WHERE",
                        help="keep the study here, to go on with it later: a file for Optuna's "
                        "journal, or a URL such as sqlite:///tune.db")  # fmt: skip
    parser.add_argument("--study-name", default=None, metavar="NAME",
                        help="the study's name in the storage (default: the test, the device, the "
                        "reference and torch's version)")  # fmt: skip
    parser.add_argument("--only", action="append", default=[], metavar="NAME=VALUES",
                        help="try only these values: --only recipe=bf16,fp16 --only compile=no; "
                        "may be repeated")  # fmt: skip
    parser.add_argument("--plots", default=None, metavar="DIR",
                        help="draw the history of the study and its parallel coordinates into "
                        "this directory")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Tune one test, say what was found, and return the exit code."""
    from pytest_amp.cli import one_test, trials
    from pytest_amp.experiment.search_space import read_only
    from pytest_amp.experiment.tuning import Tuning, Wanted, tune

    try:
        wanted = Wanted(
            options.trials, options.timeout, options.storage, options.study_name,
            read_only(options.only),
        )  # fmt: skip
        plots = None if options.plots is None else _folder(options.plots)
    except AmpError as error:
        complain(f"tune: {error}")
        return USAGE
    tuning = Tuning()

    def instead(job: Any, progress: Any, say: Say) -> None:
        lines = trials.Lines(say)
        progress.show = lines.show
        try:
            tune(job, progress, wanted, tuning, lines)
        finally:
            lines.clear()

    ended = one_test.run("tune", options.nodeid, options.arguments, instead, show)
    if ended.interrupted:
        kept = "" if wanted.storage is None else f"; go on with the same --storage {wanted.storage}"
        show(f"interrupted after {units.plural(len(tuning.trials), 'trial')}{kept}")
    elif not ended.well and not tuning.trials:
        return USAGE
    for line in trials.conclusion(tuning):
        show(line)
    if plots is not None and tuning.study is not None and tuning.best is not None:
        from pytest_amp.render import study_plots

        for path in study_plots.save(plots, tuning.study.optunas, trials.timed(tuning)):
            show(f"drawn: {path}")
    if ended.interrupted:
        return INTERRUPTED
    if not ended.well:
        return USAGE
    return FOUND if trials.adoptable(tuning) else NOTHING_TO_ADOPT


def _folder(path: str) -> Path:
    if missing := extras.missing("tune", "plots need", "matplotlib"):
        raise AmpError(missing)
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AmpError(f"--plots {path}: {error.strerror}") from None
    return Path(path)
