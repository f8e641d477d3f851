"""pytest-amp: is mixed precision still worth it, and still safe, for this training step?

Importing this package imports neither torch nor numpy; what needs them is loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_amp.errors import AmpError, AmpInconclusive, AmpRegression
from pytest_amp.results import AmpReport, ArmRun, Environment, Estimate, Finding, Gate

if TYPE_CHECKING:
    from pytest_amp.run.arm import Arm
    from pytest_amp.run.scaler import AmpScaler

__version__ = "0.1.0"

__all__ = [
    "AmpError",
    "AmpInconclusive",
    "AmpRegression",
    "AmpReport",
    "AmpScaler",
    "Arm",
    "ArmRun",
    "Environment",
    "Estimate",
    "Finding",
    "Gate",
    "__version__",
]

_LAZY = {"Arm": "pytest_amp.run.arm", "AmpScaler": "pytest_amp.run.scaler"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
