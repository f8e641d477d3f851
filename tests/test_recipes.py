"""A recipe's names, what can be added to it, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from pytest_amp.recipes import NAMES, Recipe, recipe_or_auto

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@pytest.mark.parametrize(
    ("name", "autocast", "parameters", "matmul", "float8"),
    [
        ("fp32", None, "float32", "float32", None),
        ("tf32", None, "float32", "tf32", None),
        ("bf16", "bfloat16", "float32", "float32", None),
        ("fp16", "float16", "float32", "float32", None),
        ("bf16-true", None, "bfloat16", "float32", None),
        ("fp16-true", None, "float16", "float32", None),
        ("fp8", "bfloat16", "float32", "float32", "tensorwise"),
        ("fp8-rowwise", "bfloat16", "float32", "float32", "rowwise"),
    ],
)
def test_each_name_stands_for_one_recipe(name, autocast, parameters, matmul, float8) -> None:
    found = Recipe.parse(name)
    assert found == Recipe(autocast, parameters, matmul, float8)
    assert found.dtype == (autocast or parameters)
    assert str(found) == name
    assert name in NAMES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bf16-mixed", "bf16"),
        ("16-mixed", "fp16"),
        ("BF16", "bf16"),
        (" fp8 + compile ", "fp8+compile"),
        ("fp32+tf32", "tf32"),
        ("tf32+compile", "tf32+compile"),
        ("tf32+tf32", "tf32"),
        ("bf16+compile:default", "bf16+compile"),
        ("fp8+tf32+channels_last+compile", "fp8+compile+channels_last+tf32"),
        ("bf16+tf32+compile:max-autotune", "bf16+compile:max-autotune+tf32"),
    ],
)  # fmt: skip
def test_other_spellings(text, expected) -> None:
    assert str(Recipe.parse(text)) == expected


def test_every_name_reads_back_as_the_recipe_that_it_names() -> None:
    compiled = ("", "+compile", *(f"+compile:{mode}" for mode in MODES))
    added = ("", "+channels_last"), ("", "+tf32")
    seen = set()
    for parts in itertools.product(NAMES, compiled, *added):
        found = Recipe.parse("".join(parts))
        assert Recipe.parse(str(found)) == found
        seen.add(str(found))
    assert len(seen) == 7 * 5 * 2 * 2  # tf32 is fp32 with +tf32, and +compile has a mode


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bf61", ("'bf61' is not a recipe (did you mean bf16?); there are fp32, tf32, bf16, fp16, "
                  "bf16-true, fp16-true, fp8, fp8-rowwise")),
        ("torch.bfloat16", "'torch.bfloat16' is not a recipe (did you mean bf16?)"),
        ("float16", "did you mean fp16?"),
        ("", "'' is not a recipe; there are fp32"),
        ("compile", "'compile' is not a recipe; there are"),
        ("bf16+", "adds '', and what can be added is +compile, +compile:MODE, +channels_last and "),
        ("bf16+fast", "'bf16+fast' adds 'fast'"),
        ("bf16+tf32:on", "adds 'tf32:on'"),
        ("bf16+compile+compile:default", "adds +compile twice"),
        ("bf16+compile:fast", "compile is 'fast', which is not one of None, default, "),
    ],
)  # fmt: skip
def test_what_is_no_recipe_is_told_with_what_there_is(text, said) -> None:
    with pytest.raises(ValueError) as caught:
        Recipe.parse(text)
    assert said in str(caught.value)


def test_dtypes_that_no_recipe_combines_are_refused() -> None:
    with pytest.raises(ValueError, match="no recipe has autocast in float16, parameters in bfl"):
        Recipe("float16", "bfloat16")
    with pytest.raises(ValueError, match="memory_format is 'sparse'"):
        Recipe(memory_format="sparse")


def test_a_recipe_is_a_value() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().compile = "default"  # type: ignore[misc]
    assert len({Recipe.parse("bf16"), Recipe.parse("bf16-mixed"), Recipe("bfloat16")}) == 1


def test_a_candidate_may_be_left_to_the_device() -> None:
    assert recipe_or_auto(" Auto ") is None
    assert str(recipe_or_auto("fp8")) == "fp8"
