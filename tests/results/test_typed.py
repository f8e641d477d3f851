"""Plain JSON is taken for a value of a type, or refused with the place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from pytest_amp.results.typed import typed


@dataclass(frozen=True)
class Part:
    size: int
    share: float | None = None


@dataclass(frozen=True)
class Whole:
    name: str
    kind: Literal["a", "b"] = "a"
    parts: tuple[Part, ...] = ()
    by_name: Mapping[str, tuple[float, ...]] = field(default_factory=dict, metadata={"json": "of"})
    anything: Any = None


def test_it_is_made_of_what_it_holds_and_unknown_keys_are_passed_over() -> None:
    given = {"name": "n", "kind": "b", "parts": [{"size": 3, "share": 1}, {"size": 4}],
             "of": {"x": [1, 2.5]}, "anything": [None], "later": 1}  # fmt: skip
    assert typed(Whole, given) == Whole(
        "n", "b", (Part(3, 1), Part(4)), {"x": (1, 2.5)}, anything=[None]
    )


def test_what_has_a_default_may_be_missing() -> None:
    assert typed(Whole, {"name": "n"}) == Whole("n")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (3, "the report is not an object"),
        ({}, "name is missing"),
        ({"name": None}, "name is not a text"),
        ({"name": "n", "kind": "c"}, "kind is none of 'a', 'b'"),
        ({"name": "n", "kind": ["a"]}, "kind is none of 'a', 'b'"),
        ({"name": "n", "parts": {"size": 3}}, "parts is not a list"),
        ({"name": "n", "parts": [{"size": 1}, {"size": 1.5}]}, "parts[1].size is not a whole num"),
        ({"name": "n", "parts": [{"size": True}]}, "parts[0].size is not a whole number"),
        ({"name": "n", "parts": [{"size": 10**30}]}, "parts[0].size is not a whole number"),
        ({"name": "n", "parts": [{"size": 1, "share": "x"}]}, "parts[0].share is not a number"),
        ({"name": "n", "parts": [None]}, "parts[0] is not an object"),
        ({"name": "n", "of": []}, "of is not an object"),
        ({"name": "n", "of": {"x": [1, "2"]}}, "of.x[1] is not a number"),
    ],
)
def test_what_is_of_another_type_is_named_with_its_place(given: object, said: str) -> None:
    with pytest.raises(TypeError) as caught:
        typed(Whole, given)
    assert str(caught.value).startswith(said)
