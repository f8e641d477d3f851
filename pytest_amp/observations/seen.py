"""The record that holds all others: everything that was seen of one test."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_amp.observations.drills import Accumulated, OverflowDrill, Resume, TwoScales
from pytest_amp.observations.numerics import Departure, Numerics, Origin, Zeroed
from pytest_amp.observations.operators import REDUCED
from pytest_amp.observations.runs import Floor, Losses, ParityRun, SeedRun, Timing
from pytest_amp.recipes import Recipes


@dataclass(frozen=True)
class Observations:
    """Everything that was seen of one test.

    Attributes that are not plain figures:
        nonfinite_origin: where the amp loss stopped being finite.
        stuck_origin: where gradients stop being finite, if the GradScaler keeps skipping steps.
        zeroed: where gradients turn to zero, if many do in the amp arm alone.
        gradients_left: where gradients leave fp32's, if they do and the forward pass did not.
        accumulated: how micro-batches add up, where there are several to one step.
        resume: what follows from the user's checkpoint, where there is one.
        state_origin: where the inf or NaN came from that the amp arm's state ends with.
        kept_at: the user's line that makes what an amp step keeps, if memory grows.
        rounded: the losses of fp32 with every product rounded to the amp dtype.
        anchor: the losses of fp32 in float64, of the first steps at least.
        seed: the seed that everything else was seen with.
        seeds: both arms with further seeds.
        recipes: how each arm was asked to compute.
        untimed: why timing the arms would say nothing, so that it was left out.
        policy: whose rules autocast followed: ``native``, the device's own, or ``cuda`` on a CPU.
    """

    device: str
    dtype: str
    native_support: bool
    fp32: ParityRun
    amp: ParityRun
    floor: Floor
    timing: Timing | None = None
    nonfinite_origin: Origin | None = None
    stuck_origin: Origin | None = None
    zeroed: Zeroed | None = None
    gradients_left: Departure | None = None
    device_type: str = "cpu"
    policy: str = "native"
    numerics: Numerics = field(default_factory=Numerics)
    overflow: OverflowDrill | None = None
    two_scales: TwoScales | None = None
    rounded: Losses | None = None
    anchor: Losses | None = None
    seed: int = 0
    seeds: tuple[SeedRun, ...] = ()
    accumulated: Accumulated | None = None
    resume: Resume | None = None
    state_origin: Origin | None = None
    kept_at: str | None = None
    recipes: Recipes = field(default_factory=lambda: Recipes.autocast("bfloat16"))
    untimed: str | None = None

    @property
    def rules_of(self) -> str:
        """The device type whose rules autocast followed."""
        return self.device_type if self.policy == "native" else self.policy

    @property
    def precision(self) -> str:
        """The reduced dtype by whose rounding the arms' differences are judged."""
        is_coarsest = self.dtype in REDUCED and self.recipes.fp32.dtype not in REDUCED
        return self.dtype if is_coarsest else self.recipes.precision

    @property
    def ran_in(self) -> str:
        """The reduced dtype that the arms' products ran in, which a step may choose itself."""
        operators = self.amp.operators
        chosen = operators.main_reduced_dtype if operators else None
        return self.precision if chosen is None or self.recipes.fp32.dtype in REDUCED else chosen
