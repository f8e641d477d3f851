"""Dtype maps as text: small, diffable, and parsed line by line.

Lines are compared, not text. Their order and alignment, and comments, are for the reader only.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import NamedTuple

HEADER = """\
# Which modules ran which operators in which dtype: one training step of each test under autocast.
# pytest --amp-snapshot compares with it, pytest --amp-snapshot=update writes it anew. Commit it.
"""
PHASES = ("forward", "recompute", "backward", "unseen")
OUTSIDE = "-"  # stands for calls outside of modules

_TITLE = re.compile(r"(?P<test>\S.*) on (?P<device_type>\w+) in (?P<dtype>\w+)")
_GAP = re.compile(r"\s{2,}")
_NUMBER = re.compile(r"0|[1-9]\d*")
_NUMBERS = re.compile(r"\{(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)\}")


class Title(NamedTuple):
    """Whose map it is: the test's name in its file, the kind of device, and amp's dtype."""

    test: str
    device_type: str
    dtype: str

    def __str__(self) -> str:
        return f"{escaped(self.test)} on {self.device_type} in {self.dtype}"


class Line(NamedTuple):
    """Calls that are alike.

    Attributes:
        module: the module's path as `escaped_path` writes it, or `OUTSIDE`.
        phase: one of `PHASES`.
        op: the operator's name in the map.
        dtype: the dtype, or ``input -> output`` if the two differ.
        calls: how many there were.
    """

    module: str
    phase: str
    op: str
    dtype: str
    calls: int

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the line's row, as text."""
        return (self.module, self.phase, self.op, self.dtype, str(self.calls))


Lines = frozenset[Line]


class Section(NamedTuple):
    """A stored map: the lines to compare, and the text as it stands in the file."""

    lines: Lines
    text: str


class BrokenMapError(ValueError):
    """A stored file can't be read. `line` is where, from 1."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


def escaped(text: str) -> str:
    """Escape a text to printable ASCII on one line."""
    return text.encode("unicode_escape").decode("ascii")


def escaped_path(module: str) -> str:
    """Escape a module's path, including the characters that have another meaning in a line."""
    path = escaped(module)
    for char in " {}":
        path = path.replace(char, f"\\x{ord(char):02x}")
    if path == OUTSIDE or path.startswith("#"):
        path = f"\\x{ord(path[0]):02x}{path[1:]}"
    return path


def written(lines: Iterable[Line]) -> list[str]:
    """Format the lines, one each; numbered modules that are alike share one: layers.{0-11}.norm."""
    # Widths grow in steps of eight, so that one longer name rarely shifts all other lines.
    return _columns([line.cells() for line in folded(lines)], 8)


def section(title: Title, lines: Sequence[str], comment: str) -> str:
    """Format one section. The comment is not compared."""
    return "\n".join([str(title), f"  # {comment}", *(f"  {line}" for line in lines)]) + "\n"


def document(sections: Mapping[Title, str]) -> str:
    """Format a whole file, its sections ordered by test."""
    ordered = sorted(sections, key=lambda title: (_natural(title.test), title))
    return "\n".join([HEADER, *(sections[title] for title in ordered)])


def parse(text: str) -> dict[Title, Section]:
    """Parse a file that `document` wrote.

    Raises:
        BrokenMapError: the file can't be read; the error knows the line.
    """
    found: dict[Title, tuple[set[Line], list[str]]] = {}
    lines: set[Line] | None = None
    raw: list[str] = []
    for number, shown in enumerate(text.splitlines(), 1):
        content = shown.strip()
        if content and not content.startswith("#"):
            if not shown[0].isspace():
                title = _title(number, content)
                if title in found:
                    raise BrokenMapError(number, f"a second section for {title}")
                lines, raw = found[title] = set(), []
            elif lines is None:
                raise BrokenMapError(number, f"expected a test's name before {content!r}")
            else:
                lines.update(_unfolded(_line(number, content)))
        raw.append(shown.rstrip())
    return {
        title: Section(frozenset(lines), "\n".join(raw).rstrip() + "\n")
        for title, (lines, raw) in found.items()
    }


def _title(number: int, text: str) -> Title:
    match = _TITLE.fullmatch(text)
    try:
        if match is not None:
            test = match["test"].encode("ascii").decode("unicode_escape")
            return Title(test, match["device_type"], match["dtype"])
    except UnicodeError:
        pass
    raise BrokenMapError(number, f"{text!r} is neither a comment nor `TEST on DEVICE in DTYPE`")


def _line(number: int, text: str) -> Line:
    cells = _GAP.split(text)
    if len(cells) != 5 or cells[1] not in PHASES or not cells[4].isdecimal():
        raise BrokenMapError(number, f"{text!r} is not `MODULE  PHASE  OPERATOR  DTYPE  COUNT`")
    module, phase, op, dtype, count = cells
    return Line(module, phase, op, dtype, int(count))


def diff(stored: Lines, now: Lines) -> list[str]:
    """List the differences: ``- layers.0  forward  layer_norm  float32  1``, then its ``+``."""
    rows = [("-", line) for line in folded(stored - now)]
    rows += [("+", line) for line in folded(now - stored)]
    rows.sort(key=lambda row: _place(row[1])[:4])
    text = _columns([line.cells() for _, line in rows], 1)
    return [f"{sign} {line}" for (sign, _), line in zip(rows, text, strict=True)]


def _columns(rows: Sequence[tuple[str, ...]], unit: int) -> list[str]:
    widths = [-(-(max(map(len, column)) + 2) // unit) * unit for column in zip(*rows, strict=True)]
    return [
        "".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _place(line: Line) -> tuple[object, ...]:
    """Return a sort key: by module, numbers in numeric order, then by phase and operator.

    Calls outside of modules come last.
    """
    order = (line.module == OUTSIDE, _natural(line.module.replace("{", "")))
    return (*order, PHASES.index(line.phase), line.op, line.dtype, line.calls)


def _natural(text: str) -> tuple[tuple[int, str], ...]:
    return tuple((int(digits or -1), rest) for digits, rest in re.findall(r"(\d*)(\D*)", text))


def folded(lines: Iterable[Line]) -> list[Line]:
    """Return the lines in order, modules that differ by number only as ``layers.{0-11}.norm``."""
    alike: defaultdict[tuple[object, ...], set[tuple[str, ...]]] = defaultdict(set)
    for line in lines:
        path = tuple(line.module.split("."))
        pattern = tuple("" if _NUMBER.fullmatch(part) else part for part in path)
        alike[pattern, line[1:]].add(path)
    merged = []
    for (_, rest), paths in alike.items():
        for place in reversed(range(len(next(iter(paths))))):
            paths = _merged(paths, place)  # noqa: PLW2901 - place by place
        merged += [Line(".".join(path), *rest) for path in paths]  # type: ignore[misc]
    return sorted(merged, key=_place)


def _merged(paths: set[tuple[str, ...]], place: int) -> set[tuple[str, ...]]:
    """Merge paths that differ only in the number at `place`."""
    numbers: defaultdict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = defaultdict(list)
    for path in paths:
        numbers[path[:place], path[place + 1 :]].append(path[place])
    return {(*head, _ranges(parts), *tail) for (head, tail), parts in numbers.items()}


def _ranges(parts: list[str]) -> str:
    """Format numbers as ``{0-3,7}``; leave a single part as it is."""
    if len(parts) == 1:
        return parts[0]
    ranges: list[list[int]] = []
    for number in sorted(map(int, parts)):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    shown = [str(low) if low == high else f"{low}-{high}" for low, high in ranges]
    return f"{{{','.join(shown)}}}"


def _unfolded(line: Line) -> Iterator[Line]:
    """Yield a line for each module that a folded line stands for."""
    # Every second piece of the split was between braces.
    pieces = [
        _listed(piece) if index % 2 else [piece]
        for index, piece in enumerate(_NUMBERS.split(line.module))
    ]
    for choice in product(*pieces):
        yield line._replace(module="".join(choice))


def _listed(ranges: str) -> list[str]:
    numbers: list[int] = []
    for each in ranges.split(","):
        low, _, high = each.partition("-")
        numbers += range(int(low), int(high or low) + 1)
    return [str(number) for number in numbers]
