"""The search for the lines that a failed loss gate needs in float32."""

from __future__ import annotations

import pytest

from pytest_amp.experiment.line_search import smallest

LINES = [f"net.py:{n}" for n in range(40, 0, -1)]


def needing(*wanted, asked=None):
    def passes(kept):
        assert kept
        if asked is not None:
            asked.append(kept)
        return {*wanted} <= kept

    return passes


@pytest.mark.parametrize("wanted", [("net.py:7",), ("net.py:31", "net.py:4")])
def test_the_lines_that_are_needed_are_found(wanted) -> None:
    assert smallest(LINES, needing(*wanted), 60.0) == wanted


def test_nothing_is_said_where_all_lines_together_do_not_help() -> None:
    asked: list[frozenset[str]] = []
    assert smallest(LINES, needing("other.py:1", asked=asked), 60.0) == ()
    assert asked == [frozenset(LINES)]
    assert smallest([], needing("net.py:1"), 60.0) == ()


def test_many_lines_explain_nothing() -> None:
    assert smallest(LINES[:6], needing(*LINES[:4]), 60.0) == ()


def test_trials_and_time_are_bounded() -> None:
    asked: list[frozenset[str]] = []
    smallest(LINES, needing(*LINES[::5], asked=asked), 60.0)
    assert len(asked) <= 16
    assert smallest(LINES, needing("net.py:7"), -1.0) == ()
