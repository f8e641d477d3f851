"""Choose what a rerun changes to explain a failed gate, and say what the rerun showed.

A suspect comes from a finding. A remedy needs no finding: it is tried if a step is too slow.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pytest_amp import units
from pytest_amp.judge import gates, sequential
from pytest_amp.judge.case import Case
from pytest_amp.observations import Timing
from pytest_amp.results.values import Finding

_LEAVING_FLOAT32 = ("AMP301", "AMP303", "AMP304")
_CASTS = ("AMP501", "AMP503")


@dataclass(frozen=True)
class Suspect:
    """What a rerun changes.

    Attributes:
        gate: the failed gate that the change may clear.
        module: the module to keep in float32; None turns autocast's cast cache off instead.
    """

    gate: str
    module: str | None = None


def suspect(finding: Finding, case: Case) -> Suspect | None:
    """Return what a rerun has to change to test a finding; None if no rerun can test it."""
    if finding.suppressed is not None:
        return None
    module = _module(finding)
    if _failed(case, "loss_diff") and finding.code in _LEAVING_FLOAT32 and module:
        return Suspect("loss_diff", module)
    if _failed(case, "memory_reduction") and finding.code in _CASTS:
        return Suspect("memory_reduction")
    return None


def judged(finding: Finding, suspect: Suspect, rerun: Case) -> Finding:
    """Return the finding with what the rerun showed; it is confirmed if the gate now passes."""
    every = gates.judge(rerun.seen, rerun.limits)
    again = next(gate for gate in every if gate.name == suspect.gate)
    passed = again.verdict == "pass"
    what = f"{suspect.module} kept in float32" if suspect.module else "autocast's cast cache off"
    verdict = "passes" if passed else "still fails"
    shown = f" ({units.share(again.value)})" if again.value is not None else ""
    return replace(
        finding,
        confirmed=passed,
        message=f"{finding.message}; with {what}, {suspect.gate} {verdict}{shown}",
        evidence={**finding.evidence, "counterfactual": what, "value": again.value},
    )


@dataclass(frozen=True)
class Remedy:
    """Something that may make amp steps faster.

    Attributes:
        name: what people call it.
        line: the code that applies it.
    """

    name: str
    line: str


CHANNELS_LAST = Remedy(
    "channels_last weights", "model.to(memory_format=torch.channels_last), and batches alike"
)
AUTOTUNED = Remedy("cudnn.benchmark", "torch.backends.cudnn.benchmark = True")
# A step's speed depends on convolutions if they make up more than this share of the forward FLOPs.
_CONVOLUTIONS = 0.2
# A remedy is worth a note if it makes steps this many times as fast.
_GAINS = 1.05


def remedies(case: Case) -> tuple[Remedy, ...]:
    """Return the remedies to try; none unless the speed gate failed and convolutions matter."""
    operators = case.seen.amp.operators
    if not _failed(case, "speedup") or operators is None:
        return ()
    forward = [row for row in operators.rows if row.phase == "forward" and row.flops]
    convolutions = sum(row.flops for row in forward if "conv" in row.op)
    if convolutions <= _CONVOLUTIONS * sum(row.flops for row in forward):
        return ()
    tuned = case.seen.device_type != "cuda" or case.seen.amp.flags.get("cudnn.benchmark")
    return (CHANNELS_LAST,) if tuned else (CHANNELS_LAST, AUTOTUNED)


def is_settled(ratios: Sequence[float], error_rate: float) -> bool:
    """Return whether it is clear that a remedy helps, or that it does not.

    Args:
        ratios: step time without the remedy / step time with it, one ratio a pair of blocks.
        error_rate: the bound on the probability of a wrong answer.
    """
    bounds = sequential.interval(ratios, error_rate)
    return bounds is not None and not bounds[0] <= _GAINS <= bounds[1]


def helped(remedy: Remedy, timed: Timing, error_rate: float) -> str | None:
    """Return a note on a remedy that makes amp steps faster; None if it does not."""
    low, high = sequential.interval(timed.ratios, error_rate) or (0.0, 0.0)
    if low <= _GAINS:
        return None
    before, after = (statistics.median(s) for s in (timed.fp32_step_s, timed.amp_step_s))
    ratio = statistics.median(timed.ratios)
    return (
        f"confirmed by a rerun: with {remedy.name} an amp step takes {units.duration(after)}, and "
        f"{units.duration(before)} without ({units.ratio(ratio)} {units.interval(low, high)}): "
        f"{remedy.line}"
    )


def _failed(case: Case, name: str) -> bool:
    return case.gates[name].verdict == "fail"


def _module(finding: Finding) -> str | None:
    """Return the module in which values first leave float32; else the finding's own module."""
    first = finding.evidence.get("first_to_leave")
    return first if isinstance(first, str) else finding.module
