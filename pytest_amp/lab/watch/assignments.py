"""Find the line on which the user's code gave a value its name."""

from __future__ import annotations

import ast
import linecache
from collections.abc import Iterator, Sequence
from typing import Any

from pytest_amp.lab.watch.source import in_short, users_frames
from pytest_amp.observations import Named

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.Module)
# A batch is looked into; a whole data set is not.
_MOST = 100


def names_of(value: object) -> tuple[Named, ...]:
    """Return the names that the user's running functions have for a value, the innermost first."""
    return tuple(
        Named(frame.f_code.co_filename, frame.f_lineno, name)
        for frame in users_frames()
        for name, held in _seen_from(frame)
        if name.isidentifier() and _holds(held, value)
    )


def assigned_at(names: Sequence[Named]) -> str | None:
    """Return the line that assigned a value to the first of its names that was not an argument."""
    for name in names:
        line = _assignment(name)
        if line is not None:
            return in_short(name.file, line)
    return None


def _seen_from(frame: Any) -> Iterator[tuple[str, object]]:
    yield from frame.f_locals.items()
    for name in frame.f_code.co_names:
        if name in frame.f_globals:
            yield name, frame.f_globals[name]


def _holds(held: Any, value: object) -> bool:
    if held is value:
        return True
    kind = type(held)
    within: Any = held.values() if kind is dict else held if kind in (list, tuple) else ()
    return len(within) <= _MOST and any(each is value for each in within)


def _assignment(named: Named) -> int | None:
    try:
        tree = ast.parse("".join(linecache.getlines(named.file)))
    except SyntaxError:  # it is no Python, such as what a notebook makes of it
        return None
    scopes = [each for each in ast.walk(tree) if isinstance(each, _SCOPES)]
    around = [each for each in scopes if _first(each) <= named.line <= _last(each)]
    for scope in sorted(around, key=_first, reverse=True):  # from the inside
        if named.name in _arguments(scope):
            return None
        lines = sorted(_lines_that_store(scope, named.name))
        if lines:
            return max((line for line in lines if line <= named.line), default=lines[-1])
    return None


def _first(scope: Any) -> int:
    return int(getattr(scope, "lineno", 0))


def _last(scope: Any) -> float:
    return float(getattr(scope, "end_lineno", "inf"))


def _arguments(scope: Any) -> set[str]:
    if isinstance(scope, ast.Module):
        return set()
    given = scope.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return {each.arg for each in every if each is not None}


def _lines_that_store(scope: ast.AST, name: str) -> Iterator[int]:
    """Yield the lines in a scope, but not in another within it, that assign to the name."""
    waiting = list(ast.iter_child_nodes(scope))
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store):
            yield node.lineno
        if not isinstance(node, (*_SCOPES, ast.ClassDef)):
            waiting += ast.iter_child_nodes(node)
