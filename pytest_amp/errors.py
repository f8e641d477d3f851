"""Our exceptions' common base, the one for tests that can't be measured, and notes on others."""

from __future__ import annotations

from typing import Any


class SaidInFull(Exception):
    """An exception of ours, whose message is the whole story."""

    __module__ = "pytest_amp"


class AmpError(SaidInFull):
    """The test can't be measured as it is written; the message names the thing and the fix."""

    __module__ = "pytest_amp"


def add_note(error: BaseException, text: str) -> None:
    """Say more of an exception that goes its way."""
    if hasattr(error, "add_note"):
        error.add_note(text)
    else:  # Python 3.10: pytest shows the attribute all the same
        notes: Any = error
        notes.__notes__ = [*getattr(error, "__notes__", []), text]


def unless_our_bug(info: Any) -> bool:
    """The ``__tracebackhide__`` of the modules that stand between pytest and the user's step.

    `info` is pytest's ExceptionInfo. Our frames are hidden where they tell nothing: the user's code
    raised, or the message of one of our own exceptions says it all. A bug of ours stays in sight.
    """
    if info is None or isinstance(info.value, SaidInFull):
        return True
    innermost = info.tb
    while innermost.tb_next is not None:
        innermost = innermost.tb_next
    name = str(innermost.tb_frame.f_globals.get("__name__"))
    return name.partition(".")[0] != __package__
