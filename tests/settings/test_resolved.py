"""The recipes in force: a dtype is short for a candidate, and the stronger of two levels wins."""

from __future__ import annotations

import pytest

from pytest_amp.settings.resolved import resolve


def recipes(*levels, default="bfloat16") -> tuple[str, str]:
    found = resolve(levels).recipes(default)
    return str(found.fp32), str(found.amp)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("fp32", "bf16")),
        ({"dtype": "float16"}, ("fp32", "fp16")),
        ({"candidate": "fp8+compile"}, ("fp32", "fp8+compile")),
        ({"reference": "tf32", "candidate": "auto"}, ("tf32", "bf16")),
        ({"dtype": "bfloat16", "candidate": "bf16+compile"}, ("fp32", "bf16+compile")),
        ({"dtype": "auto", "candidate": "fp16"}, ("fp32", "fp16")),
        ({"dtype": "float16", "candidate": None}, ("fp32", "fp16")),
    ],
)
def test_the_pair(given, expected) -> None:
    assert recipes(("marker", given)) == expected


def test_what_the_device_casts_to_is_the_default() -> None:
    assert recipes(default="float16") == ("fp32", "fp16")


@pytest.mark.parametrize("candidate", ["bf16", "tf32", "bf16-true"])
def test_one_level_that_disagrees_with_itself_is_an_error(candidate) -> None:
    given = {"dtype": "float16", "candidate": candidate}
    with pytest.raises(ValueError, match=f"short for candidate=fp16, and candidate={candidate}"):
        resolve([("cli", {}), ("marker", given)])


@pytest.mark.parametrize(
    ("strong", "weak", "expected"),
    [
        ({"candidate": "bf16"}, {"dtype": "float16"}, "bf16"),
        ({"dtype": "float16"}, {"candidate": "bf16-true"}, "fp16"),
        ({"dtype": "float16"}, {"candidate": "fp16+compile"}, "fp16+compile"),
        ({"candidate": "auto"}, {"dtype": "float16"}, "fp16"),
    ],
)
def test_the_stronger_level_wins(strong, weak, expected) -> None:
    assert recipes(("marker", strong), ("cli", weak))[1] == expected


def test_a_report_has_the_names() -> None:
    told = resolve([("cli", {"candidate": "bf16-mixed"})]).described()
    assert (told["candidate"].value, told["candidate"].source) == ("bf16", "cli")
    assert (told["reference"].value, told["reference"].source) == ("fp32", "default")
