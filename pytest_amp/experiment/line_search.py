"""Search for the lines that a failed loss gate needs in float32, if nothing else explains it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from pytest_amp.errors import unless_our_bug
from pytest_amp.experiment import minimal_set

__tracebackhide__ = unless_our_bug

# A finding that names more lines than this explains nothing.
_MOST_LINES = 3
_MOST_TRIALS = 16


class _Spent(Exception):
    """The trials or the time are used up."""


def smallest(
    lines: Sequence[str], passes: Callable[[frozenset[str]], bool], seconds: float
) -> tuple[str, ...]:
    """Return few lines with which the gate passes; none if there are none, or time runs out.

    Args:
        lines: the lines to choose from, the preferred ones first.
        passes: whether the gate passes with these lines in float32; it is never asked about none.
        seconds: how long the search may go on.
    """
    deadline, trials, best = time.perf_counter() + seconds, 0, frozenset(lines)

    def tried(kept: frozenset[str]) -> bool:
        nonlocal trials, best
        if not kept:
            return False  # that is the gate that failed
        if trials == _MOST_TRIALS or time.perf_counter() > deadline:
            raise _Spent
        trials += 1
        passed = passes(kept)
        if passed and len(kept) < len(best):
            best = kept
        return passed

    try:
        found = minimal_set.smallest(lines, tried).names or ()
    except _Spent:
        found = tuple(line for line in lines if line in best)
    return found if len(found) <= _MOST_LINES else ()
