"""What a bisection may keep in float32: lines of the user's, and modules."""

from __future__ import annotations

import contextlib
import inspect
import linecache
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.phases import computing
from pytest_amp.lab.workbench import Workbench

__tracebackhide__ = unless_our_bug


@dataclass(frozen=True)
class Line:
    """A line of the user's.

    Attributes:
        location: the line, as ``file:line``.
        ops: the names of the operators that it calls.
        source: its text without indentation; empty if the file can't be read.
    """

    location: str
    ops: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Module:
    """A module of the user's model.

    Attributes:
        path: its path in the model.
        kind: the name of its class.
        written: the file and line of its `forward`; the class's module if there is no source.
        called: the user's line that calls it, if known.
        is_torchs: whether the class is torch's own.
        takes: the names of the arguments that a call has to give.
    """

    path: str
    kind: str
    written: str
    called: str | None
    is_torchs: bool
    takes: tuple[str, ...] = ("x",)


Candidate = Line | Module


def found_in(bench: Workbench) -> dict[str, Candidate]:
    """Return what computes something in the amp arm, by name, in the order of preference.

    Lines come before modules: if a sum in a loss function overflows, a module that happens to feed
    it would help as well, and is not at fault. For the same reason later lines come before earlier
    ones, whose outputs make all that follows float32. Inner modules come before the modules around
    them, cheap ones first. What holds products comes last, since that costs the most in float32.
    """
    lines, modules = computing.lines_and_modules(bench)
    lines.reverse()
    paths = [each.call.path for each in modules]
    root = paths[0] if len(paths) > 1 and "." not in paths[0] else None

    def place(each: computing.Module) -> tuple[bool, int, int]:
        path = each.call.path
        around = any(other.startswith(f"{path}.") for other in paths) or path == root
        return around, -path.count(".") * around, each.flops

    return {
        **{
            each.location: _line(each) for each in sorted(lines, key=lambda each: each.has_products)
        },
        **{each.call.path: _module(each) for each in sorted(modules, key=place)},
    }


def _line(each: computing.Line) -> Line:
    file, _, number = each.location.rpartition(":")
    linecache.checkcache(file)
    return Line(each.location, each.ops, linecache.getline(file, int(number)).strip())


def _module(each: computing.Module) -> Module:
    kind = type(each.call.module)
    try:
        file, line = inspect.getsourcefile(kind.forward), inspect.getsourcelines(kind.forward)[1]
    except (OSError, TypeError):
        file, line = None, 0
    return Module(
        each.call.path,
        kind.__name__,
        f"{_short(file)}:{line}" if file else kind.__module__,
        each.location,
        computing.is_torchs(each.call.module),
        _takes(kind.forward),
    )


def _takes(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the arguments that a call has to give."""
    try:
        given = list(inspect.signature(forward).parameters.values())[1:]
    except (TypeError, ValueError):
        given = []
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [each.name for each in given if each.kind in plain and each.default is each.empty]
    return tuple(names) or ("x",)


def _short(file: str) -> str:
    with contextlib.suppress(ValueError):
        return Path(file).relative_to(Path.cwd()).as_posix()
    parts = Path(file).parts
    if "site-packages" in parts:
        return "/".join(parts[parts.index("site-packages") + 1 :])
    return file
