"""The command line of pytest-amp: rules, stored results, the machine, and bisection."""

from __future__ import annotations

import argparse
import difflib
import io
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pytest_amp import __version__
from pytest_amp.cli import compare, doctor, history, html, plot
from pytest_amp.cli.console import FINE, USAGE, complain, show
from pytest_amp.codes import CODES
from pytest_amp.rules import explain
from pytest_amp.rules.explain import WIDTH


class Command(NamedTuple):
    """A subcommand: its name, its help, its arguments, and what runs it."""

    name: str
    help: str
    arguments: Callable[[argparse.ArgumentParser], object]
    run: Callable[[argparse.Namespace], int]


def _nothing(_: argparse.ArgumentParser) -> None:
    """No arguments."""


def _rules(_: argparse.Namespace) -> int:
    _list(list(CODES))
    return FINE


def _list(codes: Sequence[str]) -> None:
    """One line a rule, for a pipe or a wide terminal; on a narrow one the summary goes below."""
    longest = max(len(CODES[code].name) for code in codes)
    heads = [f"{code}  {CODES[code].name:<{longest}}  {CODES[code].severity}" for code in codes]
    summaries = [explain.summary(code) for code in codes]
    beside = longest + len("AMP000") + len("warning") + 6
    needed = beside + max(map(len, summaries))
    if sys.stdout.isatty() and needed > shutil.get_terminal_size().columns:
        for head, summary in zip(heads, summaries, strict=True):
            show(head)
            show(textwrap.indent(textwrap.fill(summary, WIDTH - 8), " " * 8))
        return
    for head, summary in zip(heads, summaries, strict=True):
        show(f"{head:<{beside}}{summary}")


def _explain_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rule", help="a code, a name, or a part of several: AMP203, AMP2, scaler")


def _explain(options: argparse.Namespace) -> int:
    wanted: str = options.rule.strip().lower()
    names = {row.name: code for code, row in CODES.items()}
    meant = [
        code
        for name, code in names.items()
        if wanted and (code.lower().startswith(wanted) or wanted in name)
    ]
    if wanted in names or len(meant) == 1:
        show(explain.for_terminal(names.get(wanted) or meant[0]))
        return FINE
    if meant:
        _list(meant)
        return FINE
    close = difflib.get_close_matches(wanted, [*map(str.lower, CODES), *names], 2, 0.8)
    hint = f"did you mean {' or '.join(names.get(each, each.upper()) for each in close)}? "
    complain(f"no rule {options.rule!r}; {hint if close else ''}`pytest-amp rules` lists them all")
    return USAGE


def _bisect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("nodeid", help="one amp test, as pytest names it: test_it.py::test_step")
    parser.add_argument(
        "arguments",
        nargs="*",
        default=[],
        help="for pytest, behind --, such as -- --amp-override dtype=float16",
    )


def _bisect(options: argparse.Namespace) -> int:
    from pytest_amp.cli import bisect

    return bisect.main(options.nodeid, options.arguments, show)


COMMANDS = (
    Command("rules", "list all rules", _nothing, _rules),
    Command("explain", "what a rule looks for, why it hurts and the fix",
            _explain_arguments, _explain),
    Command("bisect", "which modules must stay in float32 for a test's losses to hold",
            _bisect_arguments, _bisect),
    Command("history", history.HELP, history.arguments, history.run),
    Command("compare", compare.HELP, compare.arguments, compare.run),
    Command("plot", plot.HELP, plot.arguments, plot.run),
    Command("html", html.HELP, html.arguments, html.run),
    Command("doctor", doctor.HELP, doctor.arguments, doctor.run),
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; the exit code. Usage errors end the process with 2, as argparse does."""
    parser = argparse.ArgumentParser(prog="pytest-amp", description=__doc__)
    parser.add_argument("--version", action="version", version=f"pytest-amp {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        subparser = subparsers.add_parser(command.name, help=command.help, description=command.help)
        command.arguments(subparser)
        subparser.set_defaults(run=command.run)
    options = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):  # names come from anywhere, consoles know less
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    run: Callable[[argparse.Namespace], int] = options.run
    return run(options)
