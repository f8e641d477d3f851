"""Set trace functions aside, such as those of coverage and of debuggers."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TypeVar

from pytest_amp.errors import unless_our_bug

__tracebackhide__ = unless_our_bug

T = TypeVar("T")


def is_traced() -> bool:
    """Return whether a trace function is called for each line of Python, which slows it."""
    return sys.gettrace() is not None


def is_profiled() -> bool:
    """Return whether a profile function is called for each function of Python.

    It can't be set aside: what cProfile sets is none that Python could set again.
    """
    return sys.getprofile() is not None


def untraced(function: Callable[[], T]) -> T:
    """Call a function without trace functions, in this thread and those that it starts.

    They are taken off and put back in this very frame: coverage counts the frames that it is told
    of, and would miscount if it were told of a frame's end alone.
    """
    ours, others = sys.gettrace(), threading.gettrace()
    if ours is None and others is None:
        return function()
    try:
        try:
            threading.settrace(None)
            sys.settrace(None)
            return function()
        finally:
            sys.settrace(ours)
    finally:
        threading.settrace(others)
