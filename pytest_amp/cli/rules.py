"""``pytest-amp rules`` and ``pytest-amp explain``: list the rules, and explain them."""

from __future__ import annotations

import argparse
import difflib
import shutil
import sys
import textwrap
from collections.abc import Sequence

from pytest_amp.cli.console import FINE, USAGE, complain, show
from pytest_amp.codes import CODES
from pytest_amp.rules import explain
from pytest_amp.rules.explain import WIDTH


def list_all(_: argparse.Namespace) -> int:
    """Print one line for each rule and return the exit code."""
    _list(list(CODES))
    return FINE


def _list(codes: Sequence[str]) -> None:
    """Print one line for each rule; on a narrow terminal the summary goes on a line of its own."""
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


def explain_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``pytest-amp explain``."""
    parser.add_argument("rule", help="a code, a name, or a part of several: AMP203, AMP2, scaler")


def explain_one(options: argparse.Namespace) -> int:
    """Print a rule's text, or a list if several rules are meant, and return the exit code."""
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
