"""Find where an operator comes from: the user's line, and the library whose loop runs it."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Container, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import Any

import torch

_OURS_AND_TORCHS = tuple(
    os.path.join(path, "")  # noqa: PTH118 - strings are what frames have
    for path in (
        str(Path(torch.__file__).parent),
        str(Path(__file__).parents[2]),
        sysconfig.get_path("stdlib"),
    )
)
_SITE_PACKAGES = os.path.join(sysconfig.get_path("purelib"), "")  # noqa: PTH118
# What runs a test is never what the test is about.
_RUNNERS = tuple(
    os.path.join(_SITE_PACKAGES, name, "")  # noqa: PTH118
    for name in ("_pytest", "execnet", "pluggy", "pytest", "xdist")
)


def location(sent_from: str | None = None) -> str | None:
    """Return the innermost caller outside of torch, Python and this package: ``models/net.py:42``.

    A line of the user's own is preferred to one of an installed library.

    Args:
        sent_from: in a thread without a line of the user's own, the line that gave it its work.
    """
    library = None
    for frame in _frames():
        kind = _kind(frame.f_code.co_filename)
        if kind == "user":
            return in_short(frame.f_code.co_filename, frame.f_lineno)
        if kind == "library" and library is None:
            library = frame
    if sent_from is not None or library is None:
        return sent_from
    return in_short(library.f_code.co_filename, library.f_lineno)


def made_at(made: object) -> str | None:
    """Return the line that makes an object, from within its constructors."""
    return _first(
        (frame.f_code.co_filename, frame.f_lineno)
        for frame in _frames()
        if frame.f_code.co_name != "__init__" or _self_of(frame) is not made
    )


def _self_of(frame: FrameType) -> object:
    names = frame.f_code.co_varnames
    return frame.f_locals.get(names[0]) if names else None


def location_of(error: BaseException) -> str | None:
    """Return the same for an exception, from the frames that it passed through."""
    way = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]
    return _first(reversed(way))


def library_below(error: BaseException) -> str | None:
    """Return the installed library's line that raised; None if the user's own code called torch."""
    for frame, line in reversed(list(walk_tb(error.__traceback__))):
        kind = _kind(frame.f_code.co_filename)
        if kind != "skipped":
            return f"{_shown(frame.f_code.co_filename)}:{line}" if kind == "library" else None
    return None


def first_line_of(function: Any) -> str | None:
    """Return the first line in a Python function's body; None if it is not the user's own."""
    code = getattr(function, "__code__", None)
    if code is None or not is_the_users(code.co_filename):
        return None
    lines = [line for *_, line in code.co_lines() if line and line > code.co_firstlineno]
    return f"{_shown(code.co_filename)}:{lines[0]}" if lines else None


def users_frames() -> Iterator[FrameType]:
    """Yield the callers that are the user's own code, the innermost first."""
    return (frame for frame in _frames() if is_the_users(frame.f_code.co_filename))


def in_short(file: str, line: int) -> str:
    """Write a line as findings show it: ``models/net.py:42``."""
    return f"{_shown(file)}:{line}"


def is_the_users(file: str) -> bool:
    """Return whether a source file is not torch's, Python's, ours or an installed library's."""
    return _kind(file) == "user"


def framework(known: Container[str]) -> str | None:
    """Return the outermost known package whose code is running: the one that the user called."""
    found: str | None = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        found = package if package in known else found
        frame = frame.f_back
    return found


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _first(lines: Iterable[tuple[str, int]]) -> str | None:
    library = None
    for file, line in lines:
        kind = _kind(file)
        if kind == "user":
            return f"{_shown(file)}:{line}"
        if kind == "library" and library is None:
            library = f"{_shown(file)}:{line}"
    return library


@lru_cache(maxsize=1024)
def _kind(file: str) -> str:
    if file.startswith(_SITE_PACKAGES) and not file.startswith((*_OURS_AND_TORCHS, *_RUNNERS)):
        return "library"
    return "skipped" if file.startswith((*_OURS_AND_TORCHS, *_RUNNERS, "<")) else "user"


@lru_cache(maxsize=1024)
def _shown(file: str) -> str:
    """Shorten a path that is below the current folder or in the libraries' folder."""
    for base in (os.path.join(str(Path.cwd()), ""), _SITE_PACKAGES):  # noqa: PTH118
        if file.startswith(base):
            return Path(file.removeprefix(base)).as_posix()
    return file
