"""Run something where nothing is in force that the user's code has put in force."""

from __future__ import annotations

import _thread
from collections.abc import Callable
from typing import TypeVar

from pytest_amp.errors import unless_our_bug

__tracebackhide__ = unless_our_bug

T = TypeVar("T")


def aside(function: Callable[[], T]) -> T:
    """Call a function in a thread of its own, wait for it, and return what it returns.

    Autocast, modes, grad mode and the pass of autograd that is running are a thread's own, so none
    of them is in force there. The thread is started below `threading`, where a step is watched.

    Raises:
        BaseException: whatever the function raises.
    """
    returned: list[T] = []
    raised: list[BaseException] = []
    running = _thread.allocate_lock()
    running.acquire()

    def run() -> None:
        try:
            returned.append(function())
        except BaseException as error:  # noqa: BLE001 - it is raised again
            raised.append(error)
        finally:
            running.release()

    _thread.start_new_thread(run, ())
    running.acquire()
    if raised:
        raise raised[0]
    return returned[0]
