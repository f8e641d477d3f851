"""The commands of ``pytest-amp`` that look at stored results and at the machine."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from fnmatch import fnmatchcase

from pytest_amp.record import store

FINE, REGRESSION, USAGE, INCONCLUSIVE, NO_BASELINE = range(5)


def take_storage(parser: argparse.ArgumentParser) -> None:
    """``--storage``, as ``--benchmark-storage`` has it."""
    parser.add_argument("--storage", default=store.DEFAULT, metavar="DIR",
                        help="pytest-benchmark's storage (default: %(default)s)")  # fmt: skip


def take_tests(parser: argparse.ArgumentParser) -> None:
    """Which tests, for `is_meant`."""
    parser.add_argument("tests", nargs="*", default=[], metavar="TEST",
                        help="parts of node ids, or globs; all tests without any")  # fmt: skip


def is_meant(nodeid: str, wanted: Sequence[str]) -> bool:
    """Whether the tests that were named, or all where none was, have this one among them."""
    return not wanted or any(each in nodeid or fnmatchcase(nodeid, each) for each in wanted)


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
