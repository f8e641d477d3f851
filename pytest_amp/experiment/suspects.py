"""Choose what a rerun changes to explain a failed gate, and say what the rerun showed.

A suspect comes from a finding. A remedy needs no finding: it is tried if a step is too slow.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pytest_amp import units
from pytest_amp.experiment import functions
from pytest_amp.judge import gates, sequential
from pytest_amp.judge.case import Case
from pytest_amp.observations import Timing
from pytest_amp.results.values import Finding

_LEAVING_FLOAT32 = ("AMP301", "AMP302", "AMP303", "AMP304", "AMP306")
_CASTS = ("AMP501", "AMP503")
_MOST = 0.5


@dataclass(frozen=True)
class Suspect:
    """What a rerun changes.

    Attributes:
        gate: the failed gate that the change may clear.
        lines: the source lines to keep in float32.
        modules: the modules to keep in float32. Without either, autocast's cast cache is off.
        function: the function whose lines these are, if they are all that it computes.
    """

    gate: str
    lines: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    function: str | None = None

    def __str__(self) -> str:
        if self.function is not None:
            return f"all of {self.function}() kept in float32"
        *most, last = (*self.lines, *self.modules, "")[:-1] or ("",)
        kept = f"{', '.join(most)} and {last}" if most else last
        return f"{kept} kept in float32" if kept else "autocast's cast cache off"


def suspects(finding: Finding, case: Case) -> tuple[Suspect, ...]:
    """Return what reruns have to change to test a finding, one after the other, until one helps.

    A line comes before a module, since it says more. Behind the finding's own line, which may only
    be where harm is done, comes the line at which the forward pass left fp32, then all of the
    function that the finding is in, and then the line together with those that made its inputs,
    which may have been rounded too far already.
    """
    if finding.suppressed is not None:
        return ()
    if _failed(case, "loss_diff") and finding.code in _LEAVING_FLOAT32:
        left, module = case.seen.numerics.departure, _module(finding)
        place, location = (left.place, left.location) if left else (None, None)
        fed = (place, location, *left.made_at) if left and place else ()
        found = (
            *(Suspect("loss_diff", _once(each)) for each in ((finding.location,), (place,))),
            _function(finding.location or place, case),
            Suspect("loss_diff", _once(fed)),
        )
        lines = [each for each in found if each and each.lines]
        most = _lines_of_the_model(case)
        return (
            *(each for each in dict.fromkeys(lines) if not most & {*each.lines}),
            *((Suspect("loss_diff", modules=(module,)),) if module else ()),
        )
    if _failed(case, "memory_reduction") and finding.code in _CASTS:
        return (Suspect("memory_reduction"),)
    return ()


def judged(finding: Finding, suspect: Suspect, rerun: Case) -> Finding:
    """Return the finding with what the rerun showed; it is confirmed if the gate now passes.

    If its own line was not among those that were confirmed, the first of these becomes its place.
    """
    every = gates.judge(rerun.seen, rerun.limits)
    again = next(gate for gate in every if gate.name == suspect.gate)
    passed = again.verdict == "pass"
    verdict = "passes" if passed else "still fails"
    shown = f" ({units.share(again.value)})" if again.value is not None else ""
    location = _place(finding, suspect) if passed else finding.location
    return replace(
        finding,
        confirmed=passed,
        location=location,
        no_location=None if location else finding.no_location,
        message=f"{finding.message}; with {suspect}, {suspect.gate} {verdict}{shown}",
        evidence={**finding.evidence, "counterfactual": str(suspect), "value": again.value},
    )


def _place(finding: Finding, confirmed: Suspect) -> str | None:
    if not confirmed.lines or finding.location in confirmed.lines:
        return finding.location
    return confirmed.lines[0]


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


def _once(lines: Sequence[str | None]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(line for line in lines if line))


def _function(location: str | None, case: Case) -> Suspect | None:
    """Return the function that a line is in, with all its lines that compute something."""
    function = functions.around(location) if location else None
    if function is None:
        return None
    lines = function.lines_of(case.seen.numerics.lines)
    return Suspect("loss_diff", lines, function=function.name) if lines[1:] else None


def _lines_of_the_model(case: Case) -> set[str]:
    """Return the lines that hold most of the forward FLOPs, as one does that calls a whole model.

    Float32 there is no autocast at all, and explains nothing.
    """
    rows = case.seen.amp.operators.rows if case.seen.amp.operators else ()
    flops: Counter[str] = Counter()
    for row in rows:
        if row.phase == "forward":
            flops[row.location or ""] += row.flops
    return {line for line, own in flops.items() if own > _MOST * flops.total()}


def _failed(case: Case, name: str) -> bool:
    return case.gates[name].verdict == "fail"


def _module(finding: Finding) -> str | None:
    """Return the module in which values first leave float32; else the finding's own module."""
    first = finding.evidence.get("first_to_leave")
    return first if isinstance(first, str) else finding.module
