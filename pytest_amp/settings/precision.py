"""Read a precision as torch or a framework spells it, and tell what it comes to on a device.

This module knows nothing of torch: `lab.machine.abilities` asks it what a device can do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pytest_amp.recipes import Recipe

# What Lightning, Accelerate, the HF Trainer and torch call the recipes, where that is not our name.
_SPELLINGS: Mapping[str, str] = {
    "none": "fp32",
    "no": "fp32",
    "32": "fp32",
    "32-true": "fp32",
    "float32": "fp32",
    "16": "fp16",
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
}
NATIVE, EMULATED = "native", "emulated"


@dataclass(frozen=True)
class Abilities:
    """What torch can do on a device.

    Attributes:
        name: what a sentence calls the device, such as ``a CPU`` or ``Tesla T4``.
        refuses: why torch leaves autocast off, by the dtype that it would cast to.
        tf32: whether the device has TF32.
        float8: by the kind of scales, ``"native"``, ``"emulated"``, or why there is no float8.
    """

    name: str
    refuses: Mapping[str, str] = field(default_factory=dict)
    tf32: bool = False
    float8: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EffectivePrecision:
    """What really runs where a precision was asked for.

    Attributes:
        recipe (Recipe): what runs; its text is its name.
        reason (str | None): why it is something else, or only emulated; None if it is just what was
            asked for.
    """

    recipe: Recipe
    reason: str | None = None


def requested_recipe(requested: object) -> Recipe:
    """Return the recipe that is meant by a precision in any of the usual spellings.

    Args:
        requested: None, the name of a recipe, ``"32"``, ``"32-true"``, ``"16"``, ``"16-mixed"``,
            ``"16-true"``, ``"bf16"``, ``"bf16-mixed"``, ``"bf16-true"``, Accelerate's ``"no"``, a
            torch dtype, or one of these numbers.

    Raises:
        ValueError: nothing is called so.
    """
    text = str(requested).strip().lower().removeprefix("torch.")
    return requested if isinstance(requested, Recipe) else Recipe.parse(_SPELLINGS.get(text, text))


def effective(recipe: Recipe, able: Abilities) -> EffectivePrecision:
    """Tell what runs of a recipe on a device with these abilities.

    What the device lacks is left out, so that the next wider dtype takes its place. Nothing takes
    the place of bfloat16 but float32: float16 overflows where bfloat16 does not.
    """
    reasons: list[str] = []
    if (refused := able.refuses.get(recipe.autocast_dtype or "")) is not None:
        reasons.append(f"{refused}, so everything runs in float32")
        recipe = replace(recipe, autocast_dtype=None, float8=None)
    if recipe.float8 is not None:
        how = able.float8.get(recipe.float8, f"{able.name} has no float8")
        if how == EMULATED:
            reasons.append(
                f"{able.name} has no float8: its values are rounded to float8, and the products "
                f"run in {recipe.dtype}, which is no faster"
            )
        elif how != NATIVE:
            reasons.append(f"{how}, so linear layers run in {recipe.dtype}")
            recipe = replace(recipe, float8=None)
    if recipe.matmul == "tf32" and not able.tf32:
        reasons.append(f"{able.name} has no TF32, so float32 products run in float32")
        recipe = replace(recipe, matmul="float32")
    return EffectivePrecision(recipe, "; ".join(reasons) or None)
