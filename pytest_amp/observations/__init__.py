"""Frozen records of what the laboratory saw: the raw material that `judge` draws conclusions from.

Nothing here imports torch. A record holds what happened, never what it means.
"""

from pytest_amp.observations.drills import (
    Accumulated,
    AccumulatedGradient,
    GradientAtTwoScales,
    LeftOut,
    Overflow,
    OverflowDrill,
    Resume,
    TwoScales,
)
from pytest_amp.observations.machine import Disturbance, GpuState, Machine
from pytest_amp.observations.numerics import (
    TIMES_ROUNDING,
    UNEXPLAINED_FROM,
    Computed,
    Departure,
    Gradient,
    ModuleOutput,
    Numerics,
    Origin,
    Sample,
    Zeroed,
)
from pytest_amp.observations.operators import (
    FRAMEWORKS,
    REDUCED,
    Operators,
    OpRow,
    Phase,
    Region,
    RoundTrip,
    StaleCast,
    StateUpdate,
)
from pytest_amp.observations.runs import (
    Floor,
    Losses,
    Named,
    OptimizerUse,
    Parameter,
    ParityRun,
    SeedRun,
    Start,
    Timing,
)
from pytest_amp.observations.scaler import ScalerStep, ScalerUse
from pytest_amp.observations.seen import Observations

__all__ = [
    "FRAMEWORKS",
    "REDUCED",
    "TIMES_ROUNDING",
    "UNEXPLAINED_FROM",
    "Accumulated",
    "AccumulatedGradient",
    "Computed",
    "Departure",
    "Disturbance",
    "Floor",
    "GpuState",
    "Gradient",
    "GradientAtTwoScales",
    "LeftOut",
    "Losses",
    "Machine",
    "ModuleOutput",
    "Named",
    "Numerics",
    "Observations",
    "OpRow",
    "Operators",
    "OptimizerUse",
    "Origin",
    "Overflow",
    "OverflowDrill",
    "Parameter",
    "ParityRun",
    "Phase",
    "Region",
    "Resume",
    "RoundTrip",
    "Sample",
    "ScalerStep",
    "ScalerUse",
    "SeedRun",
    "StaleCast",
    "Start",
    "StateUpdate",
    "Timing",
    "TwoScales",
    "Zeroed",
]
