"""What a precision is called elsewhere, and what it comes to where something is lacking."""

from __future__ import annotations

import pytest

from pytest_amp.recipes import NAMES, Recipe
from pytest_amp.settings.precision import Abilities, effective, requested_recipe

NATIVE = {"tensorwise": "native", "rowwise": "native"}
EVERYTHING = Abilities("a device", tf32=True, float8=NATIVE)


@pytest.mark.parametrize(
    ("spelled", "expected"),
    [
        (None, "fp32"), ("None", "fp32"), ("no", "fp32"), ("32", "fp32"), (32, "fp32"),
        ("32-true", "fp32"), ("fp32", "fp32"), ("float32", "fp32"), ("torch.float32", "fp32"),
        ("16", "fp16"), (16, "fp16"), ("16-mixed", "fp16"), ("fp16", "fp16"),
        ("torch.float16", "fp16"), ("half", "fp16"), ("16-true", "fp16-true"),
        ("bf16", "bf16"), ("bf16-mixed", "bf16"), ("bfloat16", "bf16"), ("torch.bfloat16", "bf16"),
        ("bf16-true", "bf16-true"), ("fp8", "fp8"), ("tf32", "tf32"),
        (Recipe.parse("bf16+compile"), "bf16+compile"),
    ],
)  # fmt: skip
def test_the_usual_spellings(spelled, expected) -> None:
    assert str(requested_recipe(spelled)) == expected


@pytest.mark.parametrize("spelled", ["64-true", "transformer-engine", "int8", 8, ""])
def test_a_precision_that_is_none_of_ours(spelled) -> None:
    with pytest.raises(ValueError, match="is not a recipe"):
        requested_recipe(spelled)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_device_can_do_runs_as_asked(name) -> None:
    assert effective(Recipe.parse(name), EVERYTHING).recipe == Recipe.parse(name)
    assert effective(Recipe.parse(name), EVERYTHING).reason is None


@pytest.mark.parametrize(
    ("name", "lacking", "runs", "reason"),
    [
        ("tf32", Abilities("a CPU", float8=NATIVE), "fp32",
         "a CPU has no TF32, so float32 products run in float32"),
        ("bf16+tf32+compile", Abilities("a CPU", float8=NATIVE), "bf16+compile",
         "a CPU has no TF32, so float32 products run in float32"),
        ("bf16", Abilities("a GPU", {"bfloat16": "torch refuses it"}, True, NATIVE), "fp32",
         "torch refuses it, so everything runs in float32"),
        ("fp16", Abilities("a GPU", {"bfloat16": "torch refuses it"}, True, NATIVE), "fp16", None),
        ("bf16-true", Abilities("a GPU", {"bfloat16": "no"}, True, NATIVE), "bf16-true", None),
        ("fp8+compile", Abilities("a GPU", {"bfloat16": "torch refuses it"}, True, NATIVE),
         "fp32+compile", "torch refuses it, so everything runs in float32"),
        ("fp8", Abilities("a CPU", float8={"tensorwise": "emulated"}), "fp8",
         ("a CPU has no float8: its values are rounded to float8, and the products run in "
          "bfloat16, which is no faster")),
        ("fp8-rowwise", Abilities("a CPU", float8={"rowwise": "torchao is missing"}), "bf16",
         "torchao is missing, so linear layers run in bfloat16"),
        ("fp8-rowwise", Abilities("a CPU"), "bf16",
         "a CPU has no float8, so linear layers run in bfloat16"),
    ],
)  # fmt: skip
def test_what_is_lacking_gives_way_to_something_wider(name, lacking, runs, reason) -> None:
    found = effective(Recipe.parse(name), lacking)
    assert (str(found.recipe), found.reason) == (runs, reason)


def test_bfloat16_never_becomes_float16() -> None:
    for name in NAMES:
        asked = Recipe.parse(name)
        without = Abilities("a device", {"bfloat16": "not here"}, tf32=False, float8={})
        runs = effective(asked, without).recipe
        if asked.dtype == "bfloat16":
            assert runs.dtype != "float16"
