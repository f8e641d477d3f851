"""Turn values into plain JSON and back, numbers that are not finite included."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any


def key_of(field: dataclasses.Field[Any]) -> str:
    """Return the key of a dataclass's field in JSON: its own name, unless its metadata differs."""
    return str(field.metadata.get("json", field.name))


def plain(value: Any, path: str, nonfinite: list[str]) -> Any:
    """Return `value` as plain JSON.

    A dataclass becomes an object with its fields and the properties that its class lists as
    `summaries`. JSON has no NaN and no infinity: such a number becomes None.

    Args:
        value: a value, or a container of values.
        path: where the value stands in the whole; "" for the whole.
        nonfinite: the paths of numbers that are not finite are appended to it.
    """
    if dataclasses.is_dataclass(value):
        fields = {key_of(each): getattr(value, each.name) for each in dataclasses.fields(value)}
        summaries = getattr(type(value), "summaries", ())
        value = fields | {name: getattr(value, name) for name in summaries}
    if isinstance(value, Mapping):
        return {str(key): plain(item, at(path, key), nonfinite) for key, item in value.items()}
    if isinstance(value, (frozenset, set)):
        value = sorted(value)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain(item, f"{path}[{i}]", nonfinite) for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        nonfinite.append(path)
        return None
    # xdist sends exactly these types, and none that inherits from them.
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    return None if value is None else str(value)


def restored(value: Any, path: str, nonfinite: frozenset[str]) -> Any:
    """Undo `plain`: return the value with NaN in place of None at the paths in `nonfinite`."""
    if isinstance(value, Mapping):
        return {key: restored(item, at(path, key), nonfinite) for key, item in value.items()}
    if isinstance(value, list):
        return [restored(item, f"{path}[{i}]", nonfinite) for i, item in enumerate(value)]
    return math.nan if value is None and path in nonfinite else value


def at(path: str, key: object) -> str:
    """Return the path of a key inside of what is at `path`."""
    return f"{path}.{key}" if path else str(key)
