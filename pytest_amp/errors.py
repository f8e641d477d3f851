"""The base class of our exceptions, AmpError, and helpers for exceptions of any kind."""

from __future__ import annotations

from typing import Any


class SaidInFull(Exception):
    """An exception of ours: its message is the whole story, so no traceback needs to be shown."""

    __module__ = "pytest_amp"


class AmpError(SaidInFull):
    """The test can't be measured as it is written.

    The message names what is wrong, such as a fixture or a setting, and says how to fix it.
    """

    __module__ = "pytest_amp"


def add_note(error: BaseException, text: str) -> None:
    """Attach a line to an exception, which is shown below its message, and let it propagate."""
    if hasattr(error, "add_note"):
        error.add_note(text)
    else:  # Python 3.10 has no add_note, but pytest shows the attribute there too
        notes: Any = error
        notes.__notes__ = [*getattr(error, "__notes__", []), text]


def unless_our_bug(info: Any) -> bool:
    """Return whether to hide our frames from a traceback; a module's ``__tracebackhide__``.

    The frames between pytest and the user's step are noise if the user's code raised, or if the
    message of one of our own exceptions says it all. So they are where a timeout's signal or Ctrl-C
    has raised, wherever that was. If the error is a bug of ours, they are shown.
    A frame that hides itself raises what torch would have raised, and is no bug either.

    Args:
        info: pytest's ExceptionInfo, or None.
    """
    if info is None or isinstance(info.value, SaidInFull) or not isinstance(info.value, Exception):
        return True
    innermost = info.tb
    while innermost.tb_next is not None:
        innermost = innermost.tb_next
    name = str(innermost.tb_frame.f_globals.get("__name__"))
    speaks_for_torch = innermost.tb_frame.f_locals.get("__tracebackhide__") is True
    return speaks_for_torch or name.partition(".")[0] != __package__
