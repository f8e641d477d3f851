"""Find the function of the user's source that a line belongs to."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pytest_amp.errors import unless_our_bug

__tracebackhide__ = unless_our_bug


class Function(NamedTuple):
    """A function, as it is written.

    Attributes:
        name: its name.
        file: the file, as locations have it.
        first: its first line.
        last: its last line.
    """

    name: str
    file: str
    first: int
    last: int

    def lines_of(self, locations: Iterable[str]) -> tuple[str, ...]:
        """Return the locations that lie in the function."""
        split = ((location, *location.rpartition(":")[::2]) for location in locations)
        return tuple(
            location
            for location, file, number in split
            if file == self.file and self.first <= int(number) <= self.last
        )


def around(location: str) -> Function | None:
    """Return the innermost function that a line is in; None if it is in none, or can't be read.

    Args:
        location: the line, as ``file:line``.
    """
    file, _, number = location.rpartition(":")
    try:
        tree = ast.parse(Path(file).read_text("utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None
    found = [
        Function(node.name, file, node.lineno, node.end_lineno or node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    holding = [each for each in found if each.first <= int(number) <= each.last]
    return max(holding, key=lambda each: each.first, default=None)
