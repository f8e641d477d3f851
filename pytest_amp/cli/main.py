"""The command line of pytest-amp: rules, stored results, the machine, and bisection."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pytest_amp import __version__
from pytest_amp.cli import calibrate, compare, doctor, history, html, plot, rules, tune
from pytest_amp.cli.console import INTERRUPTED, complain, show, take_test


class Command(NamedTuple):
    """A subcommand.

    Attributes:
        name: its name on the command line.
        help: one line for ``--help``.
        arguments: declares its arguments on a parser.
        run: runs it and returns the exit code.
    """

    name: str
    help: str
    arguments: Callable[[argparse.ArgumentParser], object]
    run: Callable[[argparse.Namespace], int]


def _nothing(_: argparse.ArgumentParser) -> None:
    """Declare no arguments."""


def _bisect(options: argparse.Namespace) -> int:
    from pytest_amp.cli import bisect

    return bisect.main(options.nodeid, options.arguments, show)


COMMANDS = (
    Command("rules", "list all rules", _nothing, rules.list_all),
    Command("explain", "what a rule looks for, why it hurts and the fix",
            rules.explain_arguments, rules.explain_one),
    Command("bisect", "which lines and modules a test's losses need in float32",
            take_test, _bisect),
    Command("tune", tune.HELP, tune.arguments, tune.run),
    Command("calibrate", calibrate.HELP, calibrate.arguments, calibrate.run),
    Command("history", history.HELP, history.arguments, history.run),
    Command("compare", compare.HELP, compare.arguments, compare.run),
    Command("plot", plot.HELP, plot.arguments, plot.run),
    Command("html", html.HELP, html.arguments, html.run),
    Command("doctor", doctor.HELP, doctor.arguments, doctor.run),
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return the exit code.

    A usage error exits with 2, as argparse does it.
    """
    parser = argparse.ArgumentParser(prog="pytest-amp", description=__doc__)
    parser.add_argument("--version", action="version", version=f"pytest-amp {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        subparser = subparsers.add_parser(command.name, help=command.help, description=command.help)
        command.arguments(subparser)
        subparser.set_defaults(run=command.run)
    own, pytests = _split(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(own)
    if pytests:
        options.arguments = pytests
    for stream in (sys.stdout, sys.stderr):  # names may not fit a console's encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except KeyboardInterrupt:  # while torch is imported, for one
        complain("interrupted")
        return INTERRUPTED


def _split(given: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Return a command's own arguments, and those for pytest, which follow ``--``.

    argparse takes none of them once an option stands behind the test.
    """
    if "--" not in given or given[0] not in ("bisect", "tune", "calibrate"):
        return given, ()
    place = list(given).index("--")
    return given[:place], given[place + 1 :]
