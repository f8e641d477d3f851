"""Trace functions are set aside inside, and back in place behind it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pytest_amp.lab.machine.untraced import is_traced, untraced


@pytest.fixture
def calls() -> Iterator[list[str]]:
    """The functions that a trace function was told of, in this thread and new ones."""
    seen: list[str] = []

    def trace(frame: Any, event: str, _: Any) -> None:
        seen.append(f"{event} {frame.f_code.co_name}")

    former = sys.gettrace(), threading.gettrace()
    sys.settrace(trace)
    threading.settrace(trace)
    yield seen
    sys.settrace(former[0])
    threading.settrace(former[1])  # type: ignore[arg-type]


def work() -> str:
    return "done"


def in_a_thread() -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_nothing_inside_is_traced(calls: list[str]) -> None:
    work()
    in_a_thread()
    traced = calls.count("call work")
    assert untraced(work) == "done"
    untraced(in_a_thread)
    untraced_calls = calls.count("call work") - traced
    work()
    in_a_thread()
    assert (traced, untraced_calls, calls.count("call work")) == (2, 0, 4)


def test_it_is_traced_again_behind_an_error(calls: list[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        untraced(lambda: 1 / 0)
    assert is_traced()
    work()
    assert calls.count("call work") == 1


def test_without_a_trace_function_nothing_changes() -> None:
    former = sys.gettrace()
    sys.settrace(None)
    try:
        assert untraced(work) == "done"
        assert not is_traced()
    finally:
        sys.settrace(former)
