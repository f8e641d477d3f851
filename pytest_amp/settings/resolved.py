"""The settings that are in force for a test, merged from all levels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pytest_amp.codes import GATES
from pytest_amp.recipes import Recipe, Recipes
from pytest_amp.results.values import Setting
from pytest_amp.settings.table import TABLE, Level, disagreement, in_force, with_preset
from pytest_amp.settings.thresholds import Threshold


class Settings(NamedTuple):
    """The parsed settings of one test; the table's rows say what each field means.

    Attributes:
        sources: where each value comes from, by name: ``override``, ``marker``, ``cli``, ``ini`` or
            ``default``.
    """

    preset: str | None
    min_speedup: Threshold | None
    min_memory_reduction: Threshold | None
    max_loss_diff: Threshold | None
    loss_atol: float
    max_val_loss_diff: Threshold | None
    max_accuracy_diff: Threshold | None
    min_coverage: Threshold | None
    max_skipped_steps: Threshold | None
    dtype: str | None
    reference: Recipe
    candidate: Recipe | None
    init_scale: float
    growth_interval: int
    device: str
    policy: str
    steps: int
    warmup: int
    max_time: float
    error_rate: float
    confirm: str | None
    processes: int
    seed: int
    seeds: int
    select: tuple[str, ...]
    ignore: Mapping[str, str]
    record: bool
    static: bool
    forecast: tuple[str, ...]
    strict: frozenset[str]
    snapshot: str
    compare: str | None
    compare_branch: str | None
    compare_exact: bool
    compare_fail: Mapping[str, float]
    sources: Mapping[str, str]

    @property
    def thresholds(self) -> dict[str, Threshold]:
        """The thresholds that are set, by the names of their settings."""
        found = {name: getattr(self, name) for name in GATES}
        return {name: threshold for name, threshold in found.items() if threshold is not None}

    @property
    def leaves_the_dtype_to_the_device(self) -> bool:
        """Whether nothing says which dtype the amp arm casts to."""
        return self.dtype is None and self.candidate is None

    @property
    def confirms(self) -> str:
        """Which answers of timing gates a fresh process has to give as well: off, red or all."""
        return self.confirm or ("red" if "inconclusive" in self.strict else "off")

    @property
    def asks_fresh_processes(self) -> bool:
        """Whether fresh processes may be asked about a timed test."""
        return self.confirms != "off" or self.processes > 1

    def policy_on(self, device_type: str, has_accelerator: bool, for_cuda: bool = False) -> str:
        """Return whose rules of autocast are in force: ``native``, the device's own, or ``cuda``.

        Args:
            device_type: of the device that the test runs on.
            has_accelerator: whether the machine has one.
            for_cuda: whether the test asks for a CUDA device, with the fixture of that name.

        Raises:
            ValueError: CUDA's rules are asked for where they can't be in force.
        """
        if self.policy == "cuda" and device_type not in ("cpu", "cuda"):
            raise ValueError(f"policy='cuda' is for a CPU, and the test runs on {device_type}")
        if device_type != "cpu" or self.policy == "native":
            return "native"
        if self.policy == "cuda" and not self.static:
            raise ValueError(
                "policy='cuda' is for --amp-static: a CPU's speed under CUDA's rules says nothing"
            )
        nothing_chosen = (
            self.device == "auto"
            and self.leaves_the_dtype_to_the_device
            and self.sources["reference"] == "default"
        )
        assumed = self.static and not has_accelerator and (nothing_chosen or for_cuda)
        return "cuda" if self.policy == "cuda" or assumed else "native"

    def recipes(self, default_dtype: str) -> Recipes:
        """Return the recipes of the two arms.

        Args:
            default_dtype: what autocast casts to on the device, unless the settings say.
        """
        autocast = Recipe(autocast_dtype=self.dtype or default_dtype)
        return Recipes(self.reference, self.candidate or autocast)

    def described(self) -> dict[str, Setting]:
        """Return the settings as a report records them."""
        return {
            entry.name: Setting(_as_json(getattr(self, entry.name)), self.sources[entry.name])
            for entry in TABLE
        }


def _as_json(value: Any) -> Any:
    if isinstance(value, Threshold):
        return value.as_json()
    if isinstance(value, Recipe):
        return str(value)
    if isinstance(value, frozenset):
        return sorted(value)
    return list(value) if isinstance(value, tuple) else value


def resolve(levels: Iterable[Level]) -> Settings:
    """Return the settings in force.

    Args:
        levels: the strongest first; each is a source, and its values as the user wrote them. Of a
            dtype and a candidate that disagree, the one from the stronger level is in force.

    Raises:
        ValueError: a value is not valid, or a level names a dtype and a candidate that disagree.
    """
    whole = [(source, with_preset(raw)) for source, raw in levels]
    agreeing = _without_weaker_rivals(whole)
    found = {entry.name: in_force(entry, agreeing) for entry in TABLE}
    return Settings(
        **{name: value for name, (value, _) in found.items()},
        sources={name: source for name, (_, source) in found.items()},
    )


def _without_weaker_rivals(levels: Sequence[Level]) -> list[Level]:
    """Return the levels without what disagrees with a stronger level's dtype or candidate."""
    named: dict[str, object] = {}
    agreeing: list[Level] = []
    for source, raw in levels:
        if problem := disagreement(raw):
            raise ValueError(problem)
        rivals = {name: raw[name] for name in ("dtype", "candidate") if name in raw}
        is_rival = disagreement({**rivals, **named}) is not None
        kept = {name: raw[name] for name in raw if not (is_rival and name in rivals)}
        named = {**rivals, **named}
        agreeing.append((source, kept))
    return agreeing
