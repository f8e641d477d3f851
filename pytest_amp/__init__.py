"""pytest-amp: is mixed precision still worth it, and still safe, for this training step?

Importing this package imports nothing else. Each public name is loaded on first use, because pytest
imports the package in every run of every project that has it installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_amp.errors import AmpError
    from pytest_amp.experiment.measure import measure
    from pytest_amp.lab.arm import Arm
    from pytest_amp.lab.machine.abilities import effective_precision
    from pytest_amp.lab.scaling.scaler import AmpScaler
    from pytest_amp.lab.training import Training
    from pytest_amp.plugin.models_report import ModelsReport
    from pytest_amp.plugin.training_report import TrainingReport
    from pytest_amp.recipes import Recipe
    from pytest_amp.results.report import AmpInconclusive, AmpRegression, AmpReport
    from pytest_amp.results.values import ArmRun, Environment, Estimate, Finding, Gate
    from pytest_amp.settings.precision import EffectivePrecision
    from pytest_amp.storage.frame import history

__version__ = "0.1.0"

__all__ = [
    "AmpError",
    "AmpInconclusive",
    "AmpRegression",
    "AmpReport",
    "AmpScaler",
    "Arm",
    "ArmRun",
    "EffectivePrecision",
    "Environment",
    "Estimate",
    "Finding",
    "Gate",
    "ModelsReport",
    "Recipe",
    "Training",
    "TrainingReport",
    "__version__",
    "effective_precision",
    "history",
    "measure",
]

_ROOMS = {
    "errors": ("AmpError",),
    "experiment.measure": ("measure",),
    "lab.arm": ("Arm",),
    "lab.machine.abilities": ("effective_precision",),
    "lab.scaling.scaler": ("AmpScaler",),
    "lab.training": ("Training",),
    "plugin.models_report": ("ModelsReport",),
    "plugin.training_report": ("TrainingReport",),
    "results.report": ("AmpInconclusive", "AmpRegression", "AmpReport"),
    "results.values": ("ArmRun", "Environment", "Estimate", "Finding", "Gate"),
    "settings.precision": ("EffectivePrecision",),
    "recipes": ("Recipe",),
    "storage.frame": ("history",),
}


def __getattr__(name: str) -> Any:
    for room, names in _ROOMS.items():
        if name in names:
            import importlib

            return getattr(importlib.import_module(f"{__name__}.{room}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
