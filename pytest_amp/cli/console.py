"""The commands of ``pytest-amp`` that look at stored results and at the machine."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_amp.storage import store

if TYPE_CHECKING:
    import pandas

FINE, REGRESSION, USAGE, INCONCLUSIVE, NO_BASELINE = range(5)


def take_storage(parser: argparse.ArgumentParser) -> None:
    """``--storage``, as ``--benchmark-storage`` has it."""
    parser.add_argument("--storage", default=store.DEFAULT, metavar="DIR",
                        help="pytest-benchmark's storage (default: %(default)s)")  # fmt: skip


def take_history(parser: argparse.ArgumentParser) -> None:
    """Which part of a storage, for `chosen`."""
    parser.add_argument("tests", nargs="*", default=[], metavar="TEST",
                        help="parts of node ids, or globs; all tests without any")  # fmt: skip
    parser.add_argument("--branch", default=None, help="results of this branch alone")
    take_storage(parser)


def chosen(options: argparse.Namespace) -> pandas.DataFrame:
    """The history that is meant; what could not be read of it goes to stderr.

    Raises ValueError or OSError for what is no storage.
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
    """``of test_step on branch main in /repo/.benchmarks``"""
    tests = f" of {', '.join(map(store.shown, options.tests))}" if options.tests else ""
    branch = "" if options.branch is None else f" on branch {store.shown(options.branch)}"
    return f"{tests}{branch} in {store.shown(Path(options.storage).absolute())}"


def _is_meant(nodeid: str, wanted: Sequence[str]) -> bool:
    return any(each in nodeid or fnmatchcase(nodeid, each) for each in wanted)


def beside(head: str, text: str) -> str:
    """The text behind `head`, wrapped on a terminal; on one line where another program reads."""
    if not sys.stdout.isatty():
        return (head + text).rstrip()
    width = shutil.get_terminal_size().columns
    return textwrap.fill(
        text, max(width, len(head) + 20), initial_indent=head, subsequent_indent=" " * len(head),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def show(text: str) -> None:
    """Print it. A reader who has seen enough, as ``head``, changes no exit code."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(text: str) -> None:
    """On stderr, in our name."""
    sys.stderr.write(f"pytest-amp: {text}\n")
