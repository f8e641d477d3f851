"""The record that holds all others: everything that was seen of one test."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_amp.observations.drills import Accumulated, OverflowDrill, Resume, TwoScales
from pytest_amp.observations.numerics import Departure, Numerics, Origin, Zeroed
from pytest_amp.observations.runs import Floor, Losses, ParityRun, Timing


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
    numerics: Numerics = field(default_factory=Numerics)
    overflow: OverflowDrill | None = None
    two_scales: TwoScales | None = None
    rounded: Losses | None = None
    accumulated: Accumulated | None = None
    resume: Resume | None = None
    state_origin: Origin | None = None
    kept_at: str | None = None
