"""Plain JSON values, and what JSON can't say: a time, a number that is not finite, a type."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

_LARGEST: Final = 2**63  # of whole numbers; everything that is counted is far below
_WORDS: Final = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text",
    Mapping: "an object", tuple: "a list",
}  # fmt: skip


def now() -> str:
    """The time in UTC, as ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def plain(value: Any, path: str, nonfinite: list[str]) -> Any:
    """`value` as JSON has it; what is not finite becomes None, and its path joins `nonfinite`."""
    if isinstance(value, Mapping):
        return {str(key): plain(item, _at(path, key), nonfinite) for key, item in value.items()}
    if isinstance(value, (frozenset, set)):
        value = sorted(value)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain(item, f"{path}[{i}]", nonfinite) for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        nonfinite.append(path)
        return None
    # Exactly these types, and none that inherits from them: xdist sends no others.
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    return None if value is None else str(value)


def restored(value: Any, path: str, nonfinite: frozenset[str]) -> Any:
    """The inverse of `plain`: NaN at the places that are named."""
    if isinstance(value, Mapping):
        return {key: restored(item, _at(path, key), nonfinite) for key, item in value.items()}
    if isinstance(value, list):
        return [restored(item, f"{path}[{i}]", nonfinite) for i, item in enumerate(value)]
    return math.nan if value is None and path in nonfinite else value


def typed(kind: Any, value: Any, path: str = "") -> Any:
    """`value`, plain JSON, as `kind`: a dataclass, a Mapping, a tuple, Any, and what they hold.

    A dataclass's field is under the key that its metadata has as "json", or under its own name;
    without a value it takes its default; other keys are passed over. Raises TypeError for what is
    missing or of another type, with its path.
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
        return {key: typed(arguments[1], item, _at(path, key)) for key, item in value.items()}
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
        key = field.metadata.get("json", field.name)
        if key in value:
            yield field.name, typed(hint, value[key], _at(path, key))
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise TypeError(f"{_at(path, key)} is missing")


@functools.cache
def _hints(kind: Any) -> Sequence[tuple[dataclasses.Field[Any], Any]]:
    hints = get_type_hints(kind)
    return [(field, hints[field.name]) for field in dataclasses.fields(kind)]


def _at(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
