"""Empty the exceptions of failed amp tests, so that they don't keep models and arms in memory.

Plugins keep exceptions until the end of the session, and Python keeps the last one. The frames of
their tracebacks hold the local variables of the test and of its step, the arms included.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from types import FrameType, FunctionType, TracebackType
from typing import Any

import pytest

from pytest_amp.plugin import collection

_PLAIN = (str, bytes, int, float, complex, type(None), BaseException)


def register(config: pytest.Config) -> None:
    """Register what empties exceptions, unless a debugger is to look at them."""
    if not (config.getoption("usepdb", False) or config.getoption("trace", False)):
        config.pluginmanager.register(Tracebacks(), "amp-tracebacks")


class Tracebacks:
    """Empties the exceptions of an amp test when its attempt is over.

    When its report is made would be too early: a plugin may look at the frames in
    `pytest_exception_interact`, and one that runs tests again asks later which exception it was.
    """

    def __init__(self) -> None:
        self._raised: list[pytest.ExceptionInfo[BaseException]] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        """Note the exception of an amp test."""
        raised = call.excinfo
        if raised is None or isinstance(raised.value, pytest.skip.Exception):
            return
        if collection.is_amp(item):
            self._raised.append(raised)

    @pytest.hookimpl(tryfirst=True)  # some plugins run a test again within one attempt
    def pytest_runtest_setup(self) -> None:
        """Empty the exceptions of the previous attempt."""
        self._empty()

    def pytest_runtest_logfinish(self) -> None:
        """Empty the exceptions of the attempt that is over."""
        self._empty()

    def _empty(self) -> None:
        if self._raised:
            while self._raised:
                raised = self._raised.pop()
                empty(raised.value)
                raised.traceback = type(raised.traceback)(raised.tb)  # it kept the entries too
            gc.collect()  # a trainer and its model often hold each other


def empty(error: BaseException) -> None:
    """Remove from an exception, and from those that it refers to, all references to variables.

    Their types, their messages and the lines of their tracebacks stay.
    """
    for each in _related(error):
        each.__traceback__ = _hollow(each.__traceback__)
        if isinstance(each, AttributeError):
            each.obj = None  # the object that Python looked for the attribute on
        if not all(isinstance(value, _PLAIN) for value in _flat(each.args)):
            each.args = (_text(each),)


def _related(error: BaseException) -> Iterator[BaseException]:
    """Yield the exception, its causes, its contexts and those among its arguments, each once."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        each = waiting.pop()
        if isinstance(each, BaseException) and id(each) not in seen:
            seen.add(id(each))
            waiting += each.__cause__, each.__context__, *_flat(each.args)
            yield each


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - it may hold a tensor on a device that is gone
        return type(error).__name__


def _hollow(traceback: TracebackType | None) -> TracebackType | None:
    """Return a traceback that prints the same, but has no frames with variables.

    `traceback.clear_frames` is not enough: a frame keeps its function, and so what the function
    closes over, and clearing the frame of a generator closes the generator. The old entries are
    also disconnected from each other, since pytest and Python hold some of them.
    """
    entries = []
    while traceback is not None:
        entries.append(traceback)
        traceback = traceback.tb_next
    hollow = None
    for entry in reversed(entries):
        entry.tb_next = hollow
        hollow = TracebackType(hollow, _stand_in(entry.tb_frame), -1, entry.tb_lineno)
    return hollow


def _stand_in(frame: FrameType) -> FrameType:
    """Return a frame that looks the same in a traceback, but has no variables.

    It is a generator's frame, because such a frame does not refer to the frame that called it.
    """
    code = _nothing.__code__.replace(
        co_filename=frame.f_code.co_filename,
        co_name=frame.f_code.co_name,
        co_firstlineno=frame.f_code.co_firstlineno,
    )
    stand_in: FrameType = FunctionType(code, frame.f_globals)().gi_frame
    return stand_in


def _nothing() -> Iterator[None]:
    yield
