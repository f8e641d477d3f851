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


def untraced(function: Callable[[], T]) -> T:
    """Call a function without trace functions, in this thread and those that it starts.

    They are taken off and put back in this very frame: coverage counts the frames that it is told
    of, and would miscount if it were told of a frame's end alone.
    """
    ours, others = sys.gettrace(), threading.gettrace()
    if ours is None and others is None:
        return function()
    sys.settrace(None)
    threading.settrace(None)
    try:
        return function()
    finally:
        threading.settrace(others)
        sys.settrace(ours)
