"""How figures are written: three digits, in the unit that leaves them."""

from __future__ import annotations

import pytest

from pytest_amp import units


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (9.994, "9.99x"), (9.996, "10.0x"), (9.949, "9.95x"),
        (99.94, "99.9x"), (99.96, "100x"), (99.4, "99.4x"), (123.4, "123x"),
        (-9.996, "-10.0x"), (1.0, "1.00x"),
    ],
)  # fmt: skip
def test_a_figure_has_three_digits_also_where_it_is_rounded_up(value: float, shown: str) -> None:
    assert units.ratio(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.9994, "999 ms"),
        (0.9996, "1.00 s"),
        (0.00999, "9.99 ms"),
        (9.996e-3, "10.0 ms"),
        (0, "0.00 ns"),
    ],
)  # fmt: skip
def test_a_duration_takes_the_next_unit_where_its_digits_would_be_four(
    seconds: float, shown: str
) -> None:
    assert units.duration(seconds) == shown


@pytest.mark.parametrize(
    ("items", "text"), [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_items_are_listed_as_in_a_sentence(items, text) -> None:
    assert units.listed(items) == text
