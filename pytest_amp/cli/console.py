"""What the commands share: exit codes, common arguments, and printing."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pytest_amp.storage import store

if TYPE_CHECKING:
    import pandas

N = TypeVar("N")
FINE, REGRESSION, USAGE, INCONCLUSIVE, NO_BASELINE = range(5)
INTERRUPTED = 130


def argument(parse: Callable[[object], N]) -> Callable[[str], N]:
    """Return a parser of a setting as argparse takes one."""

    def read(text: str) -> N:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def take_test(parser: argparse.ArgumentParser) -> None:
    """Add the test that a command runs, and the arguments for pytest."""
    parser.add_argument("nodeid", help="one amp test, as pytest names it: test_it.py::test_step")
    parser.add_argument("arguments", nargs="*", default=[],
                        help="arguments for pytest, after --: -- --amp-max-time=10")  # fmt: skip


def take_storage(parser: argparse.ArgumentParser) -> None:
    """Add ``--storage``, which takes what ``--benchmark-storage`` takes."""
    parser.add_argument("--storage", default=store.DEFAULT, metavar="DIR",
                        help="pytest-benchmark's storage (default: %(default)s)")  # fmt: skip


def take_history(parser: argparse.ArgumentParser) -> None:
    """Add the arguments by which `chosen` picks part of a storage."""
    parser.add_argument("tests", nargs="*", default=[], metavar="TEST",
                        help="parts of node ids, or globs (default: all tests)")  # fmt: skip
    parser.add_argument("--branch", default=None, help="only results of this branch")
    take_storage(parser)


def chosen(options: argparse.Namespace) -> pandas.DataFrame:
    """Return the part of the history that the options ask for.

    What can't be read is reported on stderr.

    Raises:
        ValueError, OSError: there is no such storage.
    """
    from pytest_amp.storage.frame import history

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = history(options.storage)
    for each in caught:
        complain(str(each.message))
    if options.tests:
        frame = frame.loc[[_is_meant(nodeid, options.tests) for nodeid in frame["nodeid"]]]
    return frame if options.branch is None else frame.loc[frame["branch"] == options.branch]


def nothing(options: argparse.Namespace) -> str:
    """Say where nothing was found: ``of test_step on branch main in /repo/.benchmarks``."""
    tests = f" of {', '.join(map(store.printable, options.tests))}" if options.tests else ""
    branch = "" if options.branch is None else f" on branch {store.printable(options.branch)}"
    return f"{tests}{branch} in {store.printable(Path(options.storage).absolute())}"


def _is_meant(nodeid: str, wanted: Sequence[str]) -> bool:
    return any(each in nodeid or fnmatchcase(nodeid, each) for each in wanted)


def beside(head: str, text: str) -> str:
    """Put `text` behind `head`: wrapped on a terminal, on one line for other programs."""
    if not sys.stdout.isatty():
        return (head + text).rstrip()
    width = shutil.get_terminal_size().columns
    return textwrap.fill(
        text, max(width, len(head) + 20), initial_indent=head, subsequent_indent=" " * len(head),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def show(text: str) -> None:
    """Print the text.

    A reader who has seen enough and closes the pipe, as ``head`` does, changes no exit code.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(text: str) -> None:
    """Write the text to stderr, prefixed with the program's name."""
    sys.stderr.write(f"pytest-amp: {text}\n")
