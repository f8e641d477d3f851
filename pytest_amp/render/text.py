"""Make lines of styled text that are plain ASCII and fit a given width.

A `Line` is a tuple of `Span`s. Their `markup` holds names that pytest's TerminalWriter knows.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import NamedTuple

Markup = tuple[str, ...]


class Span(NamedTuple):
    """A piece of a line, and the TerminalWriter markup that it is written with."""

    text: str
    markup: Markup = ()


Line = tuple[Span, ...]

PLAIN: Markup = ()
BOLD: Markup = ("bold",)
FAINT: Markup = ("light",)
GOOD: Markup = ("green",)
UNSURE: Markup = ("yellow", "bold")
BAD: Markup = ("red", "bold")

GAP = "  "


def text_of(line: Line) -> str:
    """Return the text of a line without its markup."""
    return "".join(span.text for span in line)


def ascii_only(text: str) -> str:
    """Return text as printable ASCII on one line; other characters become Python's escapes."""
    return "".join(
        char if " " <= char <= "~" else char.encode("unicode_escape").decode() for char in text
    )


def sentence(text: str) -> str:
    """Return text as printable ASCII, with single spaces in place of all white space."""
    return ascii_only(" ".join(text.split()))


def cut(text: str, width: int) -> str:
    """Return at most `width` characters; three dots replace what is cut off at the end."""
    return text if len(text) <= width else text[: max(width - 3, 0)] + "..."[: max(width, 0)]


def _cut_middle(text: str, width: int) -> str:
    if len(text) <= width or width < 8:
        return cut(text, width)
    tail = (width - 3) // 3
    return f"{text[: width - 3 - tail]}...{text[-tail:]}"


def ever_shorter(path: str) -> Iterator[str]:
    """Yield the path, then the path without its first directory, and so on down to the file."""
    yield path
    while "/" in path:
        path = path.partition("/")[2]
        yield f".../{path}"


def shorten(nodeid: str, width: int) -> str:
    """Return a node id in at most `width` characters; the function and its parameters go last."""
    path, name = split_nodeid(ascii_only(nodeid))
    base, bracket, parameters = name.partition("[")
    function = base.rpartition("::")[2] + bracket + parameters
    shorter = [f"{shown}::{name}" for shown in ever_shorter(path)] if path else []
    fitting = (text for text in (*shorter, name, f"...::{function}") if len(text) <= width)
    return next(fitting, _cut_middle(function, width))


def split_nodeid(nodeid: str) -> tuple[str, str]:
    """Return the file of a node id and the name in it; parameters may hold ``::`` and ``/`` too."""
    base, bracket, parameters = nodeid.partition("[")
    path, separator, name = base.partition("::")
    return (path, name + bracket + parameters) if separator else ("", nodeid)


def fit(line: Line, width: int) -> Line:
    """Return the line without trailing space, cut if it is too wide."""
    room = len(text_of(line)[:width].rstrip())
    spans: list[Span] = []
    for text, markup in line:
        if text[: max(room, 0)]:
            spans.append(Span(text[:room], markup))
        room -= len(text)
    return tuple(spans)


def wrapped(text: str, width: int, hanging: str) -> list[str]:
    """Wrap text into lines; all but the first one begin with `hanging`."""
    return textwrap.wrap(
        text, max(width, 20), subsequent_indent=hanging, break_on_hyphens=False
    )  # fmt: skip
