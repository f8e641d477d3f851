"""The recipes that an arm can train by: a table defines their names.

A recipe is a base, such as ``bf16``, and what is added to it, such as ``+compile``. This module
knows nothing of torch. If a recipe is not valid, a `ValueError` says what is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class _Base(NamedTuple):
    """What tells one base from another; the other fields of a recipe can be added to any."""

    autocast_dtype: str | None
    parameter_dtype: str
    float8: str | None


_BASES: Mapping[str, _Base] = {
    "fp32": _Base(None, "float32", None),
    "bf16": _Base("bfloat16", "float32", None),
    "fp16": _Base("float16", "float32", None),
    "bf16-true": _Base(None, "bfloat16", None),
    "fp16-true": _Base(None, "float16", None),
    "fp8": _Base("bfloat16", "float32", "tensorwise"),
    "fp8-rowwise": _Base("bfloat16", "float32", "rowwise"),
}
_SPELLINGS: Mapping[str, str] = {
    "tf32": "fp32+tf32",
    "bf16-mixed": "bf16",
    "16-mixed": "fp16",
    "fp16-mixed": "fp16",
    "16-true": "fp16-true",
}
_ADDITIONS: Mapping[str, tuple[str, str]] = {
    "compile": ("compile", "default"),
    "channels_last": ("memory_format", "channels_last"),
    "tf32": ("matmul", "tf32"),
}
_VALUES: Mapping[str, tuple[str | None, ...]] = {
    "matmul": ("float32", "tf32"),
    "compile": (
        None, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs",
    ),
    "memory_format": ("contiguous", "channels_last"),
}  # fmt: skip

NAMES = ("fp32", "tf32", *(name for name in _BASES if name != "fp32"))


@dataclass(frozen=True)
class Recipe:
    """How an arm computes. Its text is its name, which `Recipe.parse` reads back.

    Attributes:
        autocast_dtype (str | None): the dtype that autocast casts to; None without autocast.
        parameter_dtype (str): the dtype that the model is kept in.
        matmul (str): how float32 operands are multiplied: in ``"float32"`` or in ``"tf32"``.
        float8 (str | None): how the scales of float8 linear layers are computed, ``"tensorwise"``
            or ``"rowwise"``; None without such layers.
        compile (str | None): the mode of `torch.compile`; None if the model runs eagerly.
        memory_format (str): ``"contiguous"`` or ``"channels_last"``.

    Raises:
        ValueError: a field's value is not valid, or no recipe combines these dtypes.
    """

    autocast_dtype: str | None = None
    parameter_dtype: str = "float32"
    matmul: str = "float32"
    float8: str | None = None
    compile: str | None = None
    memory_format: str = "contiguous"

    def __post_init__(self) -> None:
        for name, valid in _VALUES.items():
            if (value := getattr(self, name)) not in valid:
                raise ValueError(
                    f"{name} is {value!r}, which is not one of {', '.join(map(str, valid))}"
                )
        if self._is_of not in _BASES.values():
            raise ValueError(
                f"no recipe has autocast in {self.autocast_dtype}, parameters in "
                f"{self.parameter_dtype} and {self.float8} float8; there are {', '.join(NAMES)}"
            )

    @classmethod
    def parse(cls, given: object) -> Recipe:
        """Read a recipe's name, such as ``fp8+compile`` or ``bf16-mixed``.

        Raises:
            ValueError: there is no such recipe; the message lists what there is.
        """
        if isinstance(given, Recipe):
            return given
        text = str(given).strip().lower()
        base, *additions = (part.strip() for part in text.split("+"))
        base, *implied = _SPELLINGS.get(base, base).split("+")
        if base not in _BASES:
            raise ValueError(_unknown(given, base))
        changed: dict[str, Any] = {}
        for addition in (*implied, *additions):
            name, _, value = addition.partition(":")
            known = _ADDITIONS.get(name)
            if known is None or (value and name != "compile"):
                raise ValueError(
                    f"{given!r} adds {addition!r}, and what can be added is +compile, "
                    "+compile:MODE, +channels_last and +tf32"
                )
            field, default = known
            if field in changed and addition not in implied:
                raise ValueError(f"{given!r} adds +{name} twice")
            changed[field] = value or default
        return cls(**_BASES[base]._asdict(), **changed)

    def __str__(self) -> str:
        base = next(name for name, each in _BASES.items() if each == self._is_of)
        tf32 = self.matmul == "tf32"
        parts = ["tf32" if base == "fp32" and tf32 else base]
        if self.compile is not None:
            parts.append("compile" if self.compile == "default" else f"compile:{self.compile}")
        if self.memory_format == "channels_last":
            parts.append("channels_last")
        if tf32 and base != "fp32":
            parts.append("tf32")
        return "+".join(parts)

    @property
    def dtype(self) -> str:
        """The dtype that a linear layer computes in, unless it is a float8 one."""
        return self.autocast_dtype or self.parameter_dtype

    @property
    def _is_of(self) -> _Base:
        return _Base(self.autocast_dtype, self.parameter_dtype, self.float8)


class Recipes(NamedTuple):
    """The recipes of the two arms, by the arms' names.

    Attributes:
        fp32: the reference's.
        amp: the candidate's.
    """

    fp32: Recipe
    amp: Recipe

    @classmethod
    def autocast(cls, dtype: str) -> Recipes:
        """Return float32 against autocast in ``float16`` or ``bfloat16``."""
        return cls(Recipe(), Recipe(autocast_dtype=dtype))

    @property
    def are_usual(self) -> bool:
        """Whether they are float32 and autocast, which everybody calls fp32 and amp."""
        return self.amp in map(Recipe, ("float16", "bfloat16")) and self.fp32 == Recipe()

    @property
    def precision(self) -> str:
        """The reduced dtype by whose rounding the arms' differences are judged: the coarser one's.

        TF32 keeps as many bits as float16. The same is granted to float32.
        """
        return "bfloat16" if "bfloat16" in (self.fp32.dtype, self.amp.dtype) else "float16"

    def named(self, text: str) -> str:
        """Return a text with the recipes' names in place of ``fp32`` and ``amp``, unless usual."""
        if self.are_usual:
            return text
        return renamed(text, {"fp32": str(self.fp32), "amp": str(self.amp)})


# An arm's name as a word of its own, and not in a name of torch's, in an option or in a path.
_ARM = re.compile(r"(?<![\w.+/=@'-])(?:fp32|amp)(?![\w+/=-]|\.\w)")


def renamed(text: str, names: Mapping[str, str]) -> str:
    """Return a text with other names in place of ``fp32`` and ``amp``."""
    return _ARM.sub(lambda arm: names[arm[0]], text)


def recipe(value: object) -> Recipe:
    """Parse the setting `reference`.

    Raises:
        ValueError: there is no such recipe.
    """
    return Recipe.parse(value)


def recipe_or_auto(value: object) -> Recipe | None:
    """Parse the setting `candidate`; None stands for "auto".

    Raises:
        ValueError: there is no such recipe.
    """
    return None if str(value).strip().lower() == "auto" else Recipe.parse(value)


def _unknown(given: object, base: str) -> str:
    import difflib

    close = difflib.get_close_matches(base.removeprefix("torch."), [*_MEANT, *NAMES], n=1)
    hint = f" (did you mean {_MEANT.get(close[0], close[0])}?)" if close else ""
    return f"{given!r} is not a recipe{hint}; there are {', '.join(NAMES)}"


# What other libraries and torch call them, where that could mean several recipes.
_MEANT = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float8": "fp8", "amp": "auto"}
