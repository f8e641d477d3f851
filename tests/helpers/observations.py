"""Records of a healthy test, and copies of them that differ in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pytest_amp.judge import gates
from pytest_amp.judge.case import Case, Limits
from pytest_amp.observations import Floor, Losses, Observations, Operators, ParityRun, Start, Timing
from pytest_amp.results.values import Finding, Gate
from pytest_amp.rules import registry

STEPS = 8
CURVE = (2.3, 2.2, 2.1, 2.05, 2.02, 2.01, 2.0, 2.0)
START = Start(("torch.float32[4]:7",), ("torch.float32[2, 4]:9",), ("cpu",))
FLAGS = {"cudnn.benchmark": False, "float32_matmul_precision": "highest"}
IN_FP32 = Operators({"float32": 1000}, {"float32": 4000}, draws=("[4]:1",))
IN_BF16 = Operators(
    {"bfloat16": 980, "float32": 20},
    {"bfloat16": 1900, "float32": 200},
    draws=("[4]:1",),
    autocast_entered=1,
)


def losses(*curve: float, **by_key: tuple[float, ...]) -> Losses:
    """Return one loss curve, or several by name."""
    return by_key or {"loss": curve}


def scaled(factor: float, last: int = STEPS) -> tuple[float, ...]:
    """Return the healthy curve with its last steps multiplied by a factor."""
    return tuple(loss * (factor if step >= STEPS - last else 1) for step, loss in enumerate(CURVE))


FP32 = ParityRun(losses(*CURVE), START, 1000, 1200, operators=IN_FP32, flags=FLAGS)
AMP = ParityRun(losses(*scaled(1.001)), START, 600, 800, operators=IN_BF16, flags=FLAGS)
FLOOR = Floor(losses(*scaled(1.002, last=5)), START, before_nudge=2, other_stream=False)


def timing(*ratios: float, elapsed_s: float = 1.0) -> Timing:
    """Return pairs with these ratios, of blocks whose amp steps take 10 ms."""
    return Timing(tuple(0.01 * r for r in ratios), (0.01,) * len(ratios), 4, "decided", elapsed_s)


def seen(
    fp32: Mapping[str, Any] | None = None,
    amp: Mapping[str, Any] | None = None,
    floor: Mapping[str, Any] | None = None,
    **other: Any,
) -> Observations:
    """Return what was seen of a healthy test, with these fields replaced."""
    return Observations(
        **{
            "device": "Some CPU",
            "dtype": "bfloat16",
            "native_support": True,
            "fp32": replace(FP32, **fp32 or {}),
            "amp": replace(AMP, **amp or {}),
            "floor": replace(FLOOR, **floor or {}),
            "timing": timing(*(1.5,) * 12),
            **other,
        }
    )


def gate(name: str, observed: Observations, **limits: Any) -> Gate:
    """Return the gate of that name under these limits."""
    return next(each for each in gates.judge(observed, Limits(**limits)) if each.name == name)


def findings(
    observed: Observations,
    select: tuple[str, ...] = ("AMP",),
    ignore: Mapping[str, str] | None = None,
    **limits: Any,
) -> tuple[Finding, ...]:
    """Return what the rules find."""
    given = Limits(**limits)
    judged = {each.name: each for each in gates.judge(observed, given)}
    return registry.findings(Case(observed, judged, given), select, ignore or {})
