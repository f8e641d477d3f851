"""Explain a verdict in words, for the exception that a failing test raises."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from pytest_amp import units
from pytest_amp.codes import CODES
from pytest_amp.results.forecast import Forecast
from pytest_amp.results.values import (
    NO_ANSWER,
    ArmRun,
    Baseline,
    DtypeMap,
    Environment,
    Finding,
    Gate,
    Setting,
    Verdict,
    against,
    arm_names,
)

FULL_COVERAGE = 0.95
# What these find is the consequence of what those find, and is told after it.
CAUSES: Mapping[str, tuple[str, ...]] = {
    "AMP207": ("AMP301", "AMP211"),
    "AMP302": ("AMP206",),
    "AMP304": ("AMP103", "AMP206", "AMP209", "AMP302"),
}
_WIDTH = 88
_GATE_WIDTH = 100  # wide enough to keep most gates' figures on one line
MOST_CHANGES = 80  # at most so many changed lines of a dtype map are shown


class Explained(Protocol):
    """The part of an `AmpReport` that an explanation needs."""

    @property
    def verdict(self) -> Verdict:
        """The test's verdict."""

    @property
    def gates(self) -> Sequence[Gate]:
        """All gates, in the order in which they are shown."""

    @property
    def unanswered(self) -> Sequence[Gate]:
        """The gates whose missing answer is a failure."""

    @property
    def unmeasured(self) -> Sequence[Gate]:
        """The gates that had a threshold and no figure."""

    @property
    def findings(self) -> Sequence[Finding]:
        """What the rules found."""

    @property
    def notes(self) -> Sequence[str]:
        """What else there is to say, a sentence each."""

    @property
    def arms(self) -> Mapping[str, ArmRun]:
        """What each arm did, by its name."""

    @property
    def environment(self) -> Environment | None:
        """Where the test was measured; None if it was not."""

    @property
    def settings(self) -> Mapping[str, Setting]:
        """The settings in force, by name."""

    @property
    def baseline(self) -> Baseline | None:
        """The stored result that this one is compared with."""

    @property
    def coverage(self) -> float | None:
        """The share of FLOPs in the amp dtype."""

    @property
    def attainable(self) -> Forecast | None:
        """The speedups that the device could show."""

    @property
    def dtype_map(self) -> DtypeMap | None:
        """The dtype map under ``--amp-snapshot``."""


def explanation(report: Explained) -> Iterator[str]:
    """Yield the lines of a verdict for a CI log: each gate, its evidence, and what to look at."""
    wrong = [gate for gate in report.gates if gate.verdict == "fail"] or list(report.unanswered)
    yield _headline(report, wrong)
    where = report.environment
    if where is not None:
        compared = against(report.arms, where.dtype)
        yield f"on {where.device}, {compared}, torch {where.torch}"
    for part in (
        _gates(report),
        _dtype_map(report),
        _arms(report),
        _findings(report),
        _look_at(report, wrong),
    ):
        lines = list(part)
        if lines:
            yield ""
            yield from lines


def _headline(report: Explained, wrong: list[Gate]) -> str:
    said = [brief(gate) for gate in wrong]
    said += [f"{finding.code} {finding.name}" for finding in in_order(report) if finding.stands]
    return "; ".join(said) or f"verdict: {report.verdict}"


def brief(gate: Gate) -> str:
    """Return ``speedup 1.12x [1.10, 1.14] is below 1.30x``, or the reason if there is no figure."""
    if gate.threshold is None or gate.value is None or not math.isfinite(gate.value):
        return f"{gate.name}: {gate.reason}"
    figure, threshold = (in_units(gate.name, each) for each in (gate.value, gate.threshold))
    shown = f"{gate.name} {figure} {interval(gate)}".rstrip()
    if gate.verdict != "fail":
        return f"{shown} is undecided against {threshold}"
    just = "just " if figure == threshold else ""
    return f"{shown} is {just}{'above' if gate.value > gate.threshold else 'below'} {threshold}"


def in_units(name: str, value: float) -> str:
    """Format a gate's figure or threshold, by the gate's name: 1.30x, 12%, +3.1%."""
    if name == "speedup":
        return units.ratio(value)
    if name.startswith("compare:"):
        return units.signed(value)
    return units.number(value) if name == "skipped_steps" else units.share(value)


def interval(gate: Gate) -> str:
    """Format the interval of a gate's figure; "" if it has none."""
    if gate.name.startswith("compare:") and gate.low is not None and gate.high is not None:
        return f"[{units.signed(gate.low)}, {units.signed(gate.high)}]"
    if gate.name == "speedup" or gate.low is None or gate.high is None:
        return units.interval(gate.low, gate.high)
    return f"[{units.share(gate.low)}, {units.share(gate.high)}]"


def _gates(report: Explained) -> Iterator[str]:
    width = max((len(gate.name) for gate in report.gates), default=0)
    for gate in report.gates:
        open_ = gate in report.unmeasured or gate in report.unanswered
        if gate.verdict != "not_gated" or open_:
            word = gate.word if gate.asked or gate.unmeasured else NO_ANSWER
            head = f"  {gate.name:<{width}}  {word:<9}  "
            yield from _wrapped(gate.reason, head, " " * len(head), _GATE_WIDTH)
    if report.unanswered and report.verdict != "fail":
        names = " and ".join(gate.name for gate in report.unanswered)
        yield f"  --amp-strict fails a test without an answer: {names}"
    if report.baseline is not None:
        yield from _wrapped(f"compared with {report.baseline}", "  ")


def _dtype_map(report: Explained) -> Iterator[str]:
    found = report.dtype_map
    if found is None or not found.changes:
        return
    yield f"  dtype map, - as stored in {found.file}, + as it ran"
    yield from (f"  {line}" for line in found.changes[:MOST_CHANGES])
    if len(found.changes) > MOST_CHANGES:
        yield f"  ... and {len(found.changes) - MOST_CHANGES} more"


def _both(report: Explained) -> tuple[ArmRun, ArmRun] | None:
    fp32, amp = report.arms.get("fp32"), report.arms.get("amp")
    return None if fp32 is None or amp is None else (fp32, amp)


def _arms(report: Explained) -> Iterator[str]:
    arms = _both(report)
    if arms is None:
        return
    fp32, amp = arms
    times = units.change(units.duration(fp32.step_time_s), units.duration(amp.step_time_s))
    peaks = units.change(units.size(fp32.peak_bytes), units.size(amp.peak_bytes))
    last = [f"{arm.losses[-1]:.6g}" if arm.losses else units.NOTHING for arm in arms]
    measured = {"step time": times, "peak memory": peaks, "last loss": units.change(*last)}
    shown = {name: change for name, change in measured.items() if change != units.NOTHING}
    if shown:
        names = arm_names(report.arms)
        yield f"  {names['fp32']} -> {names['amp']}"
    for name, change in shown.items():
        yield f"    {name:<11}  {change}"


def in_order(report: Explained) -> list[Finding]:
    """Return the findings that are not suppressed, the most useful to a reader first.

    Confirmed causes come first. Errors come before warnings. Among equals, findings that explain a
    failed gate come first, those with the largest share of the cause before others; ties are
    ordered by code. A consequence comes after its cause whatever either is.
    """
    failed = _failed(report)

    def place(finding: Finding) -> tuple[bool, str, bool, float, str]:
        share = finding.evidence.get("share")
        return (
            not finding.confirmed,
            finding.severity,
            not _explained(finding, failed),
            -share if isinstance(share, float) else 0.0,
            finding.code,
        )

    spoken = sorted((each for each in report.findings if each.suppressed is None), key=place)
    last = {each.code: index for index, each in enumerate(spoken)}

    def after_its_causes(numbered: tuple[int, Finding]) -> tuple[int, bool]:
        own, finding = numbered
        causes = [last[code] for code in _causes(finding, spoken)]
        return max([own, *causes]), bool(causes)

    return [each for _, each in sorted(enumerate(spoken), key=after_its_causes)]


def _failed(report: Explained) -> list[str]:
    return [gate.name for gate in report.gates if gate.verdict == "fail"]


def _findings(report: Explained) -> Iterator[str]:
    spoken = in_order(report)
    for finding in spoken:
        part = part_in(report, finding)
        yield f"  {finding.severity} {finding.title}{', ' if part else ''}{part}"
        yield from _wrapped(finding.text, "    ")
    for note in report.notes:
        yield from _wrapped(f"note: {note}", "  ")
    if spoken:
        yield f"  `pytest-amp explain {spoken[0].code}` says more"


def part_in(report: Explained, finding: Finding) -> str:
    """Return a finding's part in a failure: ``confirmed cause of loss_diff``; "" if it has none."""
    if behind := _causes(finding, in_order(report)):
        return f"a consequence of {' and '.join(behind)}"
    gates = explains(report, finding)
    sure = "confirmed" if finding.confirmed else "suspected"
    return f"{sure} cause of {' and '.join(gates)}" if gates else ""


def explains(report: Explained, finding: Finding) -> list[str]:
    """Return the gates that failed and may have failed because of what a finding is about."""
    return _explained(finding, _failed(report))


def _causes(finding: Finding, spoken: Sequence[Finding]) -> list[str]:
    """Return the codes of the findings that this one is a consequence of."""
    present = {each.code for each in spoken}
    return [code for code in CAUSES.get(finding.code, ()) if code in present]


def _wrapped(text: str, head: str, further: str | None = None, width: int = _WIDTH) -> list[str]:
    """Wrap text without breaking paths or codes, and indent a note's or hint's further lines."""
    if further is None:
        further = head + "  " * (len(head) < 4)
    return textwrap.wrap(
        text, width, initial_indent=head, subsequent_indent=further,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _explained(finding: Finding, failed: Sequence[str]) -> list[str]:
    code = CODES.get(finding.code)
    return [gate for gate in failed if code is not None and gate in code.explains]


def _look_at(report: Explained, wrong: list[Gate]) -> Iterator[str]:
    for gate in wrong:
        if gate.only_for:
            yield from _wrapped(f"look at {_elsewhere_hint(report)}", "  ")
        elif gate.name in _HINTS and (hint := _HINTS[gate.name](report, gate)):
            yield from _wrapped(f"look at {hint}", "  ")


def _elsewhere_hint(report: Explained) -> str:
    where = report.environment
    kind = where.device_type if where else "this device"
    gone = f" (torch is built for {where.unseen} and sees no GPU)" if where and where.unseen else ""
    return (
        f"why the test ran on {kind}{gone}; if that is intended, give the threshold a number for "
        f'{kind} too, or add "*": None to leave other devices ungated'
    )


def _speed_hint(report: Explained, gate: Gate) -> str | None:
    if report.coverage is None:
        return None
    dtype = report.environment.dtype if report.environment else "the amp dtype"
    covered = f"{units.share(report.coverage)} of the FLOPs ran in {dtype}"
    if report.coverage < FULL_COVERAGE:
        return f"coverage: {covered}, and what stays in float32 gains nothing"
    ceiling = (report.attainable and report.attainable.high) or math.inf
    measured, threshold = gate.value or math.inf, gate.threshold or 0.0
    # Where a step was faster, or the arms are not what they should be, the ceiling says nothing.
    if measured <= ceiling < threshold and not report.findings:
        return (
            f"the threshold: {covered}, and with all of them at this device's ceilings the step "
            f"would reach {units.ratio(ceiling)}; larger batches or fewer casts can change that"
        )
    return f"what is not a matrix product: {covered}; launches, casts and host code gain nothing"


def _memory_hint(*_: object) -> str:
    return (
        "what is not an activation: parameters, gradients and optimizer state stay float32 under "
        "autocast, and so do the outputs of the operators that it keeps there"
    )


def _loss_hint(report: Explained, gate: Gate) -> str | None:
    """Name the first step at which a loss leaves the range that the gate allows its last steps."""
    arms, atol = _both(report), report.settings.get("loss_atol")
    if arms is None or gate.threshold is None:
        return None
    parted = []
    for key, curve in arms[0].losses_by_key.items():
        for step, (fp32, amp) in enumerate(zip(curve, arms[1].losses_by_key[key], strict=True)):
            allowed = (atol.value if atol else 0) + gate.threshold * abs(fp32)
            if not abs(amp - fp32) <= allowed:
                place = f"of {len(curve)}, where the two {key!r} curves part"
                parted.append((step, f"{place}: {fp32:.6g}, {amp:.6g}"))
                break
    if not parted:
        return None
    step, where = min(parted)
    return f"step {step + 1} {where}"


def _coverage_hint(report: Explained, _: Gate) -> str | None:
    flops = report.arms["amp"].flops_by_dtype if "amp" in report.arms else {}
    total = sum(flops.values())
    if not total:
        return None
    shares = ", ".join(f"{dtype} {units.share(count / total)}" for dtype, count in flops.items())
    return f"the {arm_names(report.arms)['amp']} arm's FLOPs by dtype: {shares}"


def _map_hint(report: Explained, _: Gate) -> str | None:
    if report.dtype_map is None or not report.dtype_map.changes:
        return None
    return "the map above: if it is as it should be, --amp-snapshot=update stores it"


def _skip_hint(report: Explained, _: Gate) -> str | None:
    scales = report.arms["amp"].scales if "amp" in report.arms else ()
    if not scales:
        return None
    first, last = units.power(scales[0]), units.power(scales[-1])
    return f"the loss scale, {first} after the first update and {last} after the last"


_HINTS: Mapping[str, Callable[[Explained, Gate], str | None]] = {
    "speedup": _speed_hint,
    "memory_reduction": _memory_hint,
    "loss_diff": _loss_hint,
    "coverage": _coverage_hint,
    "skipped_steps": _skip_hint,
    "compare:dtype_map": _map_hint,
}
