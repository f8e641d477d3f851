"""Judge what several processes measured of one test.

Where memory lies, which clock a processor gets and how threads are placed may last for a whole
process. No pair of blocks within it can show that, but another process can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pytest_amp import units
from pytest_amp.judge import sequential
from pytest_amp.judge.gates import verdict_of
from pytest_amp.judge.speed import RESOLUTION, below
from pytest_amp.results.processes import ProcessRun
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import Estimate, Gate, GateVerdict

TIMED = ("speedup", "compare:speedup")
_ASKED_AGAIN: Mapping[str, tuple[GateVerdict, ...]] = {
    "off": (), "red": ("fail",), "all": ("fail", "pass"),
}  # fmt: skip
_ANSWERS = {"pass": "passes", "fail": "fails", "inconclusive": "has no answer"}


def of(report: AmpReport) -> ProcessRun:
    """Return what a report says of the speedup in its process."""
    found, verdict = report.speedup, report.verdict
    if found is None:
        problem = report.error.message if report.error else report.skip_reason
        return ProcessRun(None, None, None, 0, verdict, problem or "nothing was timed")
    gate = next((gate for gate in report.gates if gate.name == "speedup"), None)
    answer = gate.verdict if gate else verdict
    return ProcessRun(found.value, found.low, found.high, found.pairs, answer)


def to_confirm(report: AmpReport, confirm: str) -> tuple[str, ...]:
    """Return the names of the timing gates whose answer a fresh process is to give as well.

    Args:
        report: of this process.
        confirm: "off", "red" or "all".
    """
    asked = _ASKED_AGAIN[confirm]
    return tuple(
        gate.name
        for gate in report.gates
        if gate.name in TIMED and gate.threshold is not None and gate.verdict in asked
    )


def confirmed(
    report: AmpReport, names: Sequence[str], again: AmpReport | None, problem: str = ""
) -> AmpReport:
    """Return the report, whose timing gates have an answer only where a fresh process agrees.

    Args:
        report: of this process.
        names: the gates that were asked again.
        again: of the fresh process; None if it has none.
        problem: why it has none.
    """
    other = of(again) if again else ProcessRun(None, None, None, 0, "error", problem)
    theirs = {gate.name: gate for gate in again.gates} if again else {}
    gates = tuple(
        _agreed(gate, theirs.get(gate.name), other) if gate.name in names else gate
        for gate in report.gates
    )
    runs = (*(report.processes or (of(report),)), other)
    return _judged(replace(report, gates=gates, processes=runs))


def _agreed(gate: Gate, other: Gate | None, run: ProcessRun) -> Gate:
    if other is not None and other.verdict == gate.verdict:
        return replace(gate, reason=f"{gate.reason}; a fresh process agrees ({_shown(other)})")
    if other is None or other.value is None:
        why = f"a fresh process could not confirm it ({run.problem or run})"
    else:
        answer = _ANSWERS.get(other.verdict, other.verdict)
        why = f"a fresh process {answer} ({_shown(other)}), so this is no answer"
    return replace(gate, verdict="inconclusive", reason=f"{gate.reason}; {why}")


def _shown(gate: Gate) -> str:
    if gate.name != "speedup":
        return units.signed(gate.value)
    return units.estimate(gate.value, gate.low, gate.high)


def decided(runs: Sequence[ProcessRun], threshold: float, error_rate: float) -> str | None:
    """Return "pass" or "fail" if the processes' medians show it; None while that is open."""
    medians = [run.value for run in runs if run.value is not None]
    for edge, verdict in ((1 + RESOLUTION, "pass"), (1 - RESOLUTION, "fail")):
        if sequential.decide(medians, threshold * edge, error_rate) == verdict:
            return verdict
    return None


def fewest(error_rate: float) -> int:
    """Return how many processes could decide at the earliest."""
    return sequential.fewest_pairs(error_rate)


def over(report: AmpReport, runs: Sequence[ProcessRun], error_rate: float) -> AmpReport:
    """Return the report with a speedup, and its gate, whose unit of replication is the process.

    Args:
        report: of this process.
        runs: what each process measured, this one first.
        error_rate: the bound on the probability of each wrong decision.
    """
    medians = tuple(run.value for run in runs if run.value is not None)
    if not medians or report.speedup is None:
        return replace(report, processes=tuple(runs))
    low, high = sequential.interval(medians, error_rate) or (None, None)
    speedup = Estimate(medians, low, high, report.speedup.block_steps)
    gates = tuple(
        _over(gate, speedup, runs, error_rate) if gate.name == "speedup" else gate
        for gate in report.gates
    )
    # Without an interval it could never be compared with, as this process's own can.
    kept = speedup if low is not None else report.speedup
    return _judged(replace(report, speedup=kept, gates=gates, processes=tuple(runs)))


def _over(gate: Gate, speedup: Estimate, runs: Sequence[ProcessRun], error_rate: float) -> Gate:
    lost = [run for run in runs if run.value is None]
    sample = f"medians of {speedup.pairs} processes"
    if lost:
        sample += f"; {len(lost)} without a figure, the first: {lost[0].problem}"
    gate = replace(gate, value=speedup.value, low=speedup.low, high=speedup.high)
    if gate.threshold is None:
        return replace(gate, reason=f"{speedup} ({sample})")
    threshold = units.ratio(gate.threshold)
    verdict = decided(runs, gate.threshold, error_rate)
    if verdict == "pass":
        return replace(gate, verdict="pass", reason=f"{speedup} is at least {threshold} ({sample})")
    if verdict == "fail":
        said = below(threshold, 1 - speedup.value / gate.threshold)
        return replace(gate, verdict="fail", reason=f"{speedup} is {said} ({sample})")
    needed = fewest(error_rate)
    spread = f" ({', '.join(str(run) for run in runs)})" if len(runs) <= 3 else ""
    advice = (
        f"the fewest that could decide are {needed}: --amp-processes={needed}"
        if speedup.pairs < needed
        else f"they lie from {units.ratio(min(speedup.pair_ratios))} to "
        f"{units.ratio(max(speedup.pair_ratios))}; set a threshold further from the truth"
    )
    reason = f"{speedup} can't be told from {threshold}{spread}; {advice} ({sample})"
    return replace(gate, verdict="inconclusive", reason=reason)


def _judged(report: AmpReport) -> AmpReport:
    return replace(report, verdict=verdict_of(report.gates, report.findings))
