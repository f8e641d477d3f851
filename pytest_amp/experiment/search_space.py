"""What a tuning tries: the parts of a recipe, the loss scale, and what the test's setup offers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pytest_amp.errors import AmpError
from pytest_amp.recipes import NAMES, Recipe
from pytest_amp.settings import table
from pytest_amp.settings.precision import Abilities, effective
from pytest_amp.settings.resolved import Settings

Choice = Mapping[str, Any]  # a value for each name, as Optuna keeps them

NO, YES = "no", "yes"
_BASES = tuple(name for name in NAMES if name != "tf32")  # that is fp32, with tf32 switched on
_SWITCHES = ("compile", "channels_last", "tf32")
_SCALING: Mapping[str, tuple[float, ...]] = {
    "init_scale": tuple(2.0**power for power in (16, 14, 12, 10, 8, 6)),
    "growth_interval": (2000, 500, 100),
}
BATCH_SIZE = "batch_size"
NAMED = ("recipe", *_SWITCHES, *_SCALING)


@dataclass(frozen=True)
class Space:
    """The values that may be chosen, by name; the first of each is the default.

    Attributes:
        values: those of the recipes and of the loss scale.
        suggested: those that the setup offers by ``arm.suggest``.
        asked: the names that the setup asks for, by the recipe that it was called with.
        only: the texts of the values that the user wants, for the names that the user restricts.
        left_out: why a recipe or an addition is not tried here, by its name.
    """

    values: Mapping[str, Sequence[Any]]
    suggested: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    asked: Mapping[str, frozenset[str]] = field(default_factory=dict)
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def offering(self, name: str, values: Sequence[Any], recipe: str | None = None) -> Space:
        """Return this space with what a setup offers, if it is called with this recipe.

        Raises:
            AmpError: the name is one of ours, or was offered with other values.
        """
        known = self.suggested.get(name)
        if name in self.values:
            raise AmpError(
                f"arm.suggest({name!r}, ...): tune tries {name} itself; call it otherwise"
            )
        if known is not None and [*known] != [*values]:
            raise AmpError(
                f"arm.suggest({name!r}, {values!r}): the study has {tuple(known)!r}; offer the "
                "same values in every trial, or begin another study with --study-name"
            )
        for value in values:
            if not isinstance(value, (str, int, float, bool, type(None))):
                raise AmpError(
                    f"arm.suggest({name!r}, ...) offers {value!r}: a study keeps numbers, texts, "
                    "truth values and None, so offer a name for it"
                )
        if name == BATCH_SIZE and not all(_is_size(value) for value in values):
            raise AmpError(
                f"arm.suggest({name!r}, {values!r}): trials are compared by their time per "
                "example, so offer numbers above 0, or call it otherwise"
            )
        asked = dict(self.asked)
        if recipe is not None:
            asked[recipe] = asked.get(recipe, frozenset()) | {name}
        suggested = {**self.suggested, name: tuple(values)}
        return replace(self, suggested=suggested, asked=asked)

    def wanted(self, name: str) -> Sequence[Any]:
        """Return the values of that name that are tried."""
        if name in self.values:
            return self.values[name]
        offered = self.suggested[name]
        texts = self.only.get(name)
        if texts is None:
            return offered
        return [value for value in offered if str(value) in texts]

    def check_only(self) -> None:
        """Check what the user wants of the values that the setup offers.

        Raises:
            AmpError: the setup does not offer it.
        """
        for name, texts in self.only.items():
            if name not in self.suggested:
                valid = (*self.values, *self.suggested)
                raise AmpError(
                    f"--only {name}={','.join(texts)}: the choices are {', '.join(valid)}"
                )
            offered = [str(value) for value in self.suggested[name]]
            if unknown := [text for text in texts if text not in offered]:
                raise AmpError(f"--only {name}={unknown[0]}: the setup offers {', '.join(offered)}")

    def has(self, choice: Choice) -> bool:
        """Return whether that choice is tried."""
        return all(value in self.wanted(name) for name, value in choice.items())

    def names_for(self, recipe: str) -> Iterator[str]:
        """Yield the names of what there is to choose beside a recipe."""
        yield from _SWITCHES
        if Recipe.parse(recipe).autocast_dtype == "float16":
            yield from _SCALING
        asked = self.asked.get(recipe, frozenset(self.suggested))
        yield from (name for name in self.suggested if name in asked)

    def choices(self) -> Iterator[Choice]:
        """Yield every choice that there is."""
        for recipe in self.wanted("recipe"):
            yield from self.choices_of(recipe)

    def choices_of(self, recipe: str) -> Iterator[Choice]:
        """Yield every choice that has this recipe."""
        names = [*self.names_for(recipe)]
        for values in itertools.product(*map(self.wanted, names)):
            yield {"recipe": recipe, **dict(zip(names, values, strict=True))}

    @property
    def tried(self) -> Mapping[str, Sequence[Any]]:
        """The names of which several values are tried, with the values."""
        names = dict.fromkeys(
            name for recipe in self.wanted("recipe") for name in self.names_for(recipe)
        )
        found = {name: self.wanted(name) for name in ("recipe", *names)}
        return {name: values for name, values in found.items() if len(values) > 1}


def space_of(
    able: Abilities, device_type: str, only: Mapping[str, Sequence[str]], eager_default: str
) -> Space:
    """Return what can be tried on a device.

    Args:
        able: what the device can do.
        device_type: its type.
        only: the texts of the values that the user wants, by name.
        eager_default: the recipe that comes first.

    Raises:
        AmpError: a value that the user wants is not valid, or can't be tried on this device.
    """
    compiled = (NO, "default", "reduce-overhead") if device_type == "cuda" else (NO, "default")
    defaults: dict[str, Sequence[Any]] = {
        "recipe": sorted(_BASES, key=lambda name: name != eager_default),
        "compile": compiled,
        "channels_last": (NO, YES),
        "tf32": (NO, YES),
        **_SCALING,
    }
    values = {
        name: [_read(name, text) for text in only[name]] if name in only else defaults[name]
        for name in defaults
    }
    left_out = {}
    for name in values["recipe"]:
        found = effective(Recipe.parse(name), able)
        if found.reason is not None:
            left_out[name] = found.reason
    if YES in values["tf32"] and (why := effective(Recipe.parse("tf32"), able).reason):
        left_out["tf32"] = why
    for name, why in left_out.items():
        where = "tf32" if name == "tf32" else "recipe"
        if where in only:
            raise AmpError(f"--only {where}={','.join(only[where])}: {why}")
    values["recipe"] = [name for name in values["recipe"] if name not in left_out]
    values["tf32"] = [value for value in values["tf32"] if value == NO or "tf32" not in left_out]
    others = {name: texts for name, texts in only.items() if name not in values}
    return Space(values, only=others, left_out=left_out)


def read_only(texts: Sequence[str]) -> dict[str, list[str]]:
    """Read ``NAME=VALUE,VALUE`` from each text.

    Raises:
        AmpError: a text is something else.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        chosen = [value.strip() for value in values.split(",") if value.strip()]
        if not equals or not chosen:
            raise AmpError(
                f"--only {text}: write NAME=VALUE,VALUE, with a name of {', '.join(NAMED)} or one "
                "that the setup offers by arm.suggest"
            )
        found[name.strip()] = chosen
    return found


def _read(name: str, text: str) -> Any:
    """Parse one value of a name that is ours, as the user wrote it."""
    try:
        if name == "recipe":
            recipe = Recipe.parse(text)
            if str(recipe) not in _BASES:
                raise ValueError(
                    f"{text!r} is more than one of {', '.join(_BASES)}: restrict compile, "
                    "channels_last and tf32 by their own names"
                )
            return str(recipe)
        if name == "compile":
            return text if text == NO else Recipe(compile=text).compile
        if name in _SCALING:
            return table.parse(table.BY_NAME[name], text)
    except ValueError as error:
        raise AmpError(f"--only {name}={text}: {error}") from None
    if text not in (NO, YES):
        raise AmpError(f"--only {name}={text}: write {name}={NO}, {YES} or both")
    return text


def _is_size(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def recipe_of(choice: Choice) -> Recipe:
    """Return the recipe of a choice."""
    parts = [choice["recipe"]]
    if choice["compile"] != NO:
        parts.append(f"compile:{choice['compile']}")
    parts += [name for name in ("channels_last", "tf32") if choice[name] == YES]
    return Recipe.parse("+".join(parts))


def settings_of(choice: Choice, settings: Settings) -> Settings:
    """Return a test's settings with a choice in force."""
    chosen = {name: choice[name] for name in _SCALING if name in choice}
    return settings._replace(dtype=None, candidate=recipe_of(choice), **chosen)


def suggested_in(choice: Choice) -> dict[str, Any]:
    """Return the part of a choice that the setup offered."""
    return {name: value for name, value in choice.items() if name not in NAMED}


def described(choice: Choice) -> str:
    """Return a choice on one line: its recipe, and what is not at its default."""
    parts = [str(recipe_of(choice))]
    for name, values in _SCALING.items():
        if name in choice and choice[name] != values[0]:
            parts.append(f"{name}={choice[name]:g}")
    parts += [f"{name}={value}" for name, value in suggested_in(choice).items()]
    return " ".join(parts)
