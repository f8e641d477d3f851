"""What is judged: what was seen of one test, and the limits that apply to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_amp.observations import Observations
from pytest_amp.results.values import Gate


@dataclass(frozen=True)
class Limits:
    """The thresholds in force on the test's device; None if a metric is not gated.

    `chosen` has the names of the settings that somebody gave. `elsewhere` has the gates whose
    threshold names devices, none of which is this one, with these devices. `reference_is_chosen`
    says whether somebody named the reference's recipe, and `loss_atol_is_chosen` whether somebody
    chose `loss_atol`; the default is held against what rounding does.
    """

    min_speedup: float | None = None
    min_memory_reduction: float | None = None
    max_loss_diff: float | None = 0.02
    loss_atol: float = 0.005
    min_coverage: float | None = None
    max_skipped_steps: float | None = None
    error_rate: float = 0.01
    max_time: float = 30.0
    static: bool = False
    elsewhere: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    loss_atol_is_chosen: bool = True
    reference_is_chosen: bool = False
    max_val_loss_diff: float | None = 0.05
    max_accuracy_diff: float | None = None
    chosen: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Case:
    """Everything that a rule may look at."""

    seen: Observations
    gates: Mapping[str, Gate]
    limits: Limits
