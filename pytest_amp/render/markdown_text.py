"""Put text of any origin into Markdown, where it means nothing but itself.

Names, messages and settings come from anywhere: a test's id may hold a pipe, a tag or somebody's
name behind an @. What has a meaning in GitHub's or GitLab's Markdown becomes a character reference,
which is never markup (CommonMark 0.31, section 6.2), in tables and within HTML as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from pytest_amp import units

_MEANS_SOMETHING = re.compile(
    r"""
    [\\`*\[\]<&|~$]               # markup, HTML, a table's cells, mathematics
    | (?<![^\W_])_ | _(?![^\W_])  # emphasis, if it is not within a word
    | @ | [\#!](?=\d)             # people and teams, issues and merge requests
    | :(?=//|[\w+-]+:)            # links and emojis
    | (?<=www)\.                  # links
    # What begins a line, and a command to GitLab.
    | ^(?: [>=/] | [+-](?=\s|$) | -(?=-+$) | \#(?=\#*(?:\s|$)) | \d(?=\d*[.)](?:\s|$)) )
    """,
    re.VERBOSE | re.IGNORECASE,
)
# GitHub and GitLab look for people and issues in the text between tags, so a tag divides them.
_DIVIDED = "@#!"


def escaped(text: str) -> str:
    """Return text on one line, escaped, for any place in Markdown but a block of code."""
    return _MEANS_SOMETHING.sub(lambda found: _reference(found[0]), units.one_line(text))


def _reference(char: str) -> str:
    return f"&#{ord(char)};{'<wbr>' if char in _DIVIDED else ''}"


def code(text: str) -> str:
    """Return text as code within a line."""
    return f"<code>{escaped(text)}</code>"


def block(text: str, language: str = "") -> str:
    """Return text as a block of code, whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    lines = "\n".join(map(units.printable, text.split("\n")))
    return f"{fence}{language}\n{lines}\n{fence}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table whose cells are Markdown already; columns of figures are right."""
    yield _row(heads)
    yield _row(["---"] * len(heads))
    yield from map(_row, rows)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def folded(title: str, lines: Iterable[str]) -> str:
    """Return lines that are shown once somebody opens them. The title is Markdown already."""
    return "\n".join([f"<details><summary>{title}</summary>", "", *lines, "", "</details>"])
