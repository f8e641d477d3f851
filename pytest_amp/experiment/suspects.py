"""Choose what a rerun changes to explain a failed gate, and say what the rerun showed.

A suspect comes from a finding. A remedy needs no finding: it is tried if a step is too slow.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pytest_amp import units
from pytest_amp.codes import CODES
from pytest_amp.experiment import functions
from pytest_amp.judge import abstain, gates, speed
from pytest_amp.judge.case import Case
from pytest_amp.observations import Timing
from pytest_amp.results.values import Finding, Gate

_LEAVING_FLOAT32 = ("AMP301", "AMP302", "AMP303", "AMP304", "AMP306")
_CASTS = ("AMP501", "AMP503")
# The share of the forward FLOPs from which on a line is taken to call the whole model.
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
        kept = (*self.lines, *self.modules)
        return f"{units.listed(kept)} kept in float32" if kept else "autocast's cast cache off"


def by_line(finding: Finding, case: Case) -> tuple[Suspect, ...]:
    """Return the lines that reruns keep in float32 to test a finding, until one helps.

    Behind the finding's own line, which may only be where harm is done, comes the line at which the
    forward pass left fp32, then all of the function that the finding is in, and then the line
    together with those that made its inputs, which may have been rounded too far already.
    """
    if not _is_about_numbers(finding, case):
        return ()
    left = case.seen.numerics.departure
    place, location = (left.place, left.location) if left else (None, None)
    fed = (place, location, *left.made_at) if left and place else ()
    found = (
        *(Suspect("loss_diff", _once(each)) for each in ((finding.location,), (place,))),
        _function(finding.location or place, case),
        Suspect("loss_diff", _once(fed)),
    )
    lines = [each for each in found if each and each.lines]
    most = _lines_of_the_model(case)
    return tuple(each for each in dict.fromkeys(lines) if not most & {*each.lines})


def by_module(finding: Finding, case: Case) -> tuple[Suspect, ...]:
    """Return what reruns change if no line helped, since a module or a cache says less."""
    if _is_about_numbers(finding, case):
        module = _module(finding)
        return (Suspect("loss_diff", modules=(module,)),) if module else ()
    if finding.suppressed is None and finding.code in _CASTS and _failed(case, "memory_reduction"):
        return (Suspect("memory_reduction"),)
    return ()


def _is_about_numbers(finding: Finding, case: Case) -> bool:
    known = finding.suppressed is None and finding.code in _LEAVING_FLOAT32
    return known and _failed(case, "loss_diff")


def wants_lines(found: Sequence[Finding], case: Case) -> bool:
    """Return whether the loss gate failed, and neither a fault nor a rerun has explained it."""
    explained = any(
        each.confirmed or (each.stands and each.code not in _LEAVING_FLOAT32)
        for each in found
        if "loss_diff" in CODES[each.code].explains
    )
    return _failed(case, "loss_diff") and not explained


def lines_to_try(case: Case) -> list[str]:
    """Return the lines that compute something beside the model, the last first."""
    most = _lines_of_the_model(case)
    return [line for line in reversed(case.seen.numerics.lines) if line not in most]


def about_numbers(found: Sequence[Finding]) -> int | None:
    """Return the number of the first finding that float32 may mend; None if there is none."""
    those = (n for n, each in enumerate(found) if each.code in _LEAVING_FLOAT32)
    return next((n for n in those if found[n].suppressed is None), None)


def gate_of(case: Case, name: str) -> Gate:
    """Judge a case that was run again, and return one of its gates."""
    return next(gate for gate in gates.judge(case.seen, case.limits) if gate.name == name)


def judged(finding: Finding, suspect: Suspect, rerun: Case) -> Finding:
    """Return the finding with what the rerun showed; it is confirmed if the gate now passes.

    If its own line was not among those that were confirmed, the first of these becomes its place.
    """
    again = gate_of(rerun, suspect.gate)
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
# The interval of a speedup on the side, by its lower end.
_PRECISE = 1.1


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
    bounds = abstain.interval(ratios, error_rate)
    return bounds is not None and not bounds[0] <= _GAINS <= bounds[1]


def is_precise(ratios: Sequence[float], error_rate: float) -> bool:
    """Return whether the pairs show a speedup to within 5%."""
    bounds = abstain.interval(ratios, error_rate)
    return bounds is not None and bounds[1] <= _PRECISE * bounds[0]


def with_threads(threads: int, timed: Timing, error_rate: float) -> str:
    """Return a note on the speedup that fewer threads show."""
    pairs = units.plural(len(timed.ratios), "pair")
    return (
        f"with OMP_NUM_THREADS={threads} both arms were timed once more: "
        f"{speed.estimate(timed, error_rate)} ({pairs}); that does not count for the gate"
    )


def helped(remedy: Remedy, timed: Timing, error_rate: float) -> str | None:
    """Return a note on a remedy that makes amp steps faster; None if it does not."""
    low, high = abstain.interval(timed.ratios, error_rate) or (0.0, 0.0)
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
