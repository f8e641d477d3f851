"""A verdict in words, for the exception that a failing test raises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pytest_amp import units

if TYPE_CHECKING:
    from pytest_amp.results import AmpReport

_MARK: Mapping[str, str] = {
    "pass": "ok", "fail": "FAILED", "inconclusive": "no answer", "not_gated": "not gated",
}  # fmt: skip


def explanation(report: AmpReport) -> Iterator[str]:
    """The verdict for a CI log: every gate, on what evidence, and what to look at."""
    errors = [finding for finding in report.findings if finding.stands]
    wrong = [gate for gate in report.gates if gate.verdict == "fail"] or report.unanswered
    headline = [f"{gate.name} {gate.reason}" for gate in wrong]
    headline += [f"{finding.code} {finding.name}" for finding in errors]
    yield "; ".join(headline) or f"verdict: {report.verdict}"
    where = report.environment
    if where is not None:
        yield f"on {where.device}, {where.dtype} against float32, torch {where.torch}"
    yield ""
    width = max((len(gate.name) for gate in report.gates), default=0)
    for gate in report.gates:
        if gate.verdict != "not_gated" or gate.unmeasured:
            yield f"  {gate.name:<{width}}  {_MARK[gate.verdict]:<9}  {gate.reason}"
    fp32, amp = report.arms.get("fp32"), report.arms.get("amp")
    if fp32 is not None and amp is not None:
        yield ""
        if fp32.step_times_s and amp.step_times_s:
            times = f"{units.duration(fp32.step_time_s)} -> {units.duration(amp.step_time_s)}"
            yield f"  step time  fp32 -> amp  {times}"
        if fp32.peak_bytes is not None and amp.peak_bytes is not None:
            yield (
                f"  peak memory fp32 -> amp {units.size(fp32.peak_bytes)}"
                f" -> {units.size(amp.peak_bytes)}"
            )
        if fp32.losses and amp.losses:
            yield f"  last loss  fp32 -> amp  {fp32.losses[-1]:.6g} -> {amp.losses[-1]:.6g}"
    spoken = [finding for finding in report.findings if finding.suppressed is None]
    if spoken:
        yield ""
    for finding in sorted(spoken, key=lambda finding: (finding.severity, finding.code)):
        yield f"  {finding.severity}: {finding}"
    for note in report.notes:
        yield f"  note: {note}"
