"""Read plain JSON as a value of a given type, or refuse it and say what is wrong where."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from pytest_amp.results.plain import at, key_of

_LARGEST: Final = 2**63  # of whole numbers; whatever we count is far below
_WORDS: Final = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text",
    Mapping: "an object", tuple: "a list",
}  # fmt: skip


def typed(kind: Any, value: Any, path: str = "") -> Any:
    """Return a value of type `kind` that is made from plain JSON.

    A dataclass's field is read from the key that its metadata has as "json", or else from its own
    name. A field whose key is missing takes its default, and unknown keys are ignored.

    Args:
        kind: a dataclass, a Mapping, a tuple, a Literal, a plain type, or Any.
        value: the plain JSON.
        path: where the value stands in the whole; "" for the whole.

    Raises:
        TypeError: something is missing or of another type; the message gives its path.
    """
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if kind is Any:
        return value
    if type(None) in arguments:  # as in int | None
        return None if value is None else typed(arguments[0], value, path)
    if origin is Literal:
        if value in arguments:
            return value
        raise TypeError(f"{path} is none of {', '.join(map(repr, arguments))}")
    if origin is Mapping and isinstance(value, Mapping):
        return {key: typed(arguments[1], item, at(path, key)) for key, item in value.items()}
    if origin is tuple and isinstance(value, list):
        return tuple(typed(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return origin(**dict(_fields(kind, value, path)))
    if _is_of(kind, value):
        return value
    raise TypeError(f"{path or 'the report'} is not {_WORDS.get(origin, 'an object')}")


def _is_of(kind: Any, value: object) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if isinstance(value, int):
        return kind in (int, float) and abs(value) < _LARGEST
    return kind in (float, str) and isinstance(value, kind)


def _fields(kind: Any, value: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for field, hint in _hints(kind):
        key = key_of(field)
        if key in value:
            yield field.name, typed(hint, value[key], at(path, key))
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise TypeError(f"{at(path, key)} is missing")


@functools.cache
def _hints(kind: Any) -> Sequence[tuple[dataclasses.Field[Any], Any]]:
    hints = get_type_hints(kind)
    return [(field, hints[field.name]) for field in dataclasses.fields(kind)]
