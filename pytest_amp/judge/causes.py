"""Which suspect of a failing gate a rerun can try, and what the rerun shows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pytest_amp import units
from pytest_amp.judge import gates
from pytest_amp.judge.rules.base import Case
from pytest_amp.records import ParityRun
from pytest_amp.results import Finding

_LEAVING_FLOAT32 = ("AMP301", "AMP303", "AMP304")
_CASTS = ("AMP501", "AMP503")


@dataclass(frozen=True)
class Suspect:
    """What to change: the module to keep in float32, or, without one, autocast's cast cache."""

    gate: str
    module: str | None = None


def suspect(finding: Finding, case: Case) -> Suspect | None:
    """What a rerun changes to clear the gate that failed; None where there is no such rerun."""
    if finding.suppressed is not None:
        return None
    module = _module(finding)
    if _failed(case, "loss_diff") and finding.code in _LEAVING_FLOAT32 and module:
        return Suspect("loss_diff", module)
    if _failed(case, "memory_reduction") and finding.code in _CASTS:
        return Suspect("memory_reduction")
    return None


def judged(finding: Finding, suspect: Suspect, case: Case, changed: ParityRun) -> Finding:
    """The finding, confirmed if the gate passes in the rerun, and what the rerun showed."""
    again = next(
        gate
        for gate in gates.judge(replace(case.seen, amp=changed), case.limits)
        if gate.name == suspect.gate
    )
    passed = again.verdict == "pass"
    what = f"{suspect.module} kept in float32" if suspect.module else "autocast's cast cache off"
    verdict = "passes" if passed else "fails all the same"
    shown = f" ({units.share(again.value)})" if again.value is not None else ""
    return replace(
        finding,
        confirmed=passed,
        message=f"{finding.message}; with {what}, {suspect.gate} {verdict}{shown}",
        evidence={**finding.evidence, "counterfactual": what, "value": again.value},
    )


def _failed(case: Case, name: str) -> bool:
    return case.gates[name].verdict == "fail"


def _module(finding: Finding) -> str | None:
    """The module that the numbers leave float32 in, which may be another than the finding's."""
    first = finding.evidence.get("first_to_leave")
    return first if isinstance(first, str) else finding.module
