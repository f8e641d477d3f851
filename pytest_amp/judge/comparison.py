"""Compare a result with a stored one, and judge whether it changed by more than is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pytest_amp import units
from pytest_amp.codes import COMPARED_METRICS
from pytest_amp.judge import acknowledge, contention
from pytest_amp.judge.gates import verdict_of
from pytest_amp.judge.parity import tail_means
from pytest_amp.results.acknowledged import Acknowledged
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import (
    COMPARED,
    Baseline,
    Environment,
    Estimate,
    Finding,
    Gate,
    GateVerdict,
)

ROUNDING = 1e-9  # 630 / 600 - 1 is not exactly 0.05
VERSIONS = ("torch", "cuda", "cudnn", "driver")
_WORDS = {"pass": "is within", "fail": "is beyond", "inconclusive": "can't be told from"}


def compared(
    report: AmpReport,
    stored: AmpReport,
    origin: Baseline,
    allowed: Mapping[str, float],
    findings: Iterable[Finding] = (),
    accepted: Mapping[str, Acknowledged] | None = None,
) -> AmpReport:
    """Return the report with a gate for each metric that compares it with a stored result.

    Args:
        report: the new result.
        stored: the baseline.
        origin: where the baseline comes from.
        allowed: by metric, the largest relative change for the worse, as a fraction. Other metrics
            are reported, but not gated.
        findings: what the rules find in the two. They replace those of an earlier comparison.
        accepted: by metric, the change for the worse that was accepted since the baseline.
    """
    found = [
        _unless_accepted(judge, report, stored, allowed.get(metric), (accepted or {}).get(metric))
        for metric, judge in (("speedup", _speedup), ("memory", _memory), ("loss", _loss))
    ]
    differing = tuple(differences(stored.environment, report.environment))
    findings = (*filter(_is_of_the_step, report.findings), *findings)
    origin = replace(origin, differences=differing)
    return _judged(replace(report, baseline=origin, findings=findings), found)


def _unless_accepted(
    judge: Callable[[AmpReport, AmpReport, float | None], Gate],
    report: AmpReport,
    stored: AmpReport,
    allowed: float | None,
    accepted: Acknowledged | None,
) -> Gate:
    """Judge a change. One that is too large is held against what was accepted, if anything was."""
    gate = judge(report, stored, allowed)
    if accepted is None or gate.verdict not in ("fail", "inconclusive"):
        return gate
    since = judge(report, acknowledge.onto(stored, accepted), allowed)
    if since.verdict == "not_gated":  # such as a loss that is gone
        return gate
    why = units.printable(accepted.reason)
    reason = f"{gate.reason}; accepted ({why}), and since then {since.reason}"
    return replace(gate, verdict=since.verdict, reason=reason)


def without_baseline(
    report: AmpReport,
    why: str,
    allowed: Mapping[str, float],
    new: Acknowledged | None = None,
) -> AmpReport:
    """Return the report with gates that have no verdict, because there is no baseline.

    Args:
        report: the new result.
        why: why there is no baseline.
        allowed: the metrics that were to be gated.
        new: what accepts that the test is new. Then there are no such gates, but a note.
    """
    reason = f"no baseline: {why}"
    if new is not None:
        accepted = f"{reason}; accepted ({units.printable(new.reason)})"
        return replace(report, notes=(*report.notes, accepted))
    metrics = [metric for metric in COMPARED_METRICS if metric in allowed] or COMPARED_METRICS[:1]
    gates = [_unknown(metric, allowed.get(metric), reason) for metric in metrics]
    notes = report.notes if allowed else (*report.notes, reason)  # the gate says it already
    return _judged(replace(report, notes=notes), gates)


def differences(before: Environment | None, after: Environment | None) -> Iterator[str]:
    """Yield each difference of two environments, such as ``torch 2.12.0 -> 2.13.0``."""
    if before is None or after is None:
        return
    for name in VERSIONS:
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            yield units.printable(f"{name} {old or 'none'} -> {new or 'none'}")
    for name, (old, new) in other_flags(before, after).items():
        yield units.printable(f"{name} {old} -> {new}")


def other_flags(before: Environment | None, after: Environment | None) -> dict[str, list[Any]]:
    """Return both values of each flag that differs; nothing if an environment is unknown."""
    if before is None or after is None:
        return {}
    return {
        name: [before.flags.get(name), after.flags.get(name)]
        for name in sorted({*before.flags, *after.flags})
        if before.flags.get(name) != after.flags.get(name)
    }


def _is_of_the_step(finding: Finding) -> bool:
    """Return whether a finding is about the step itself, and not from an earlier comparison."""
    return not (finding.code == "AMP005" and "baseline" in finding.evidence)


def _judged(report: AmpReport, found: Sequence[Gate]) -> AmpReport:
    """Return the report with these gates, which replace those of an earlier comparison."""
    kept = (*(gate for gate in report.gates if gate.name not in COMPARED), *found)
    ended = report.verdict in ("error", "skipped")
    return replace(
        report, gates=kept, verdict=report.verdict if ended else verdict_of(kept, report.findings)
    )


def _speedup(report: AmpReport, stored: AmpReport, allowed: float | None) -> Gate:
    """Judge the change of the speedup.

    It is a regression only if both intervals together exclude the allowed drop.
    """
    now, before = report.speedup, stored.speedup
    if now is None or before is None or before.value <= 0:
        arm = "this run" if now is None else "the baseline"
        return _unknown("speedup", allowed, f"{arm} was not timed")
    change = now.value / before.value - 1
    times = ", ".join(f"{name} {_times(stored, report, name)}" for name in ("fp32", "amp"))
    detail = f"{units.ratio(before.value)} -> {units.ratio(now.value)}; {times}"
    if not (now.low and now.high and before.low and before.high):
        whose = "the baseline" if now.low and now.high else "this run"
        few = "too few pairs to tell, or ones that follow each other: raise max_time"
        return _gate("speedup", change, allowed, "inconclusive", detail, but=f"{whose} has {few}")
    low, high = now.low / before.high - 1, now.high / before.low - 1
    verdict: GateVerdict = "pass"
    if allowed is not None and low < -allowed:
        verdict = "fail" if high < -allowed else "inconclusive"
    if verdict == "inconclusive":
        detail += f"; {_wider(now, before)}"
    but = ""
    if verdict == "fail" and allowed is not None:
        but = contention.could_have_lowered(report, stored, 1 - allowed) or ""
        verdict = "inconclusive" if but else "fail"
    if (
        change < 0
        and _is_as_fast(stored, report, "amp")
        and not _is_as_fast(report, stored, "fp32")
    ):
        detail += "; amp is as fast as it was, fp32 is faster"
    return _gate("speedup", change, allowed, verdict, detail, interval=(low, high), but=but)


def _wider(now: Estimate, before: Estimate) -> str:
    """Say which of the two results has to be measured more precisely, and how."""
    theirs = (before.high or 0.0) * (now.low or 0.0) > (now.high or 0.0) * (before.low or 0.0)
    whose, wide = ("the baseline's", before) if theirs else ("this run's", now)
    bounds, pairs = units.interval(wide.low, wide.high), units.plural(wide.pairs, "pair")
    advice = "save one from a run with --amp-compare-fail" if theirs else "raise max_time"
    return f"{whose} {bounds} of {pairs} is the wider interval: {advice}"


def _is_as_fast(before: AmpReport, after: AmpReport, name: str) -> bool:
    """Return whether an arm's steps take no longer than before, apart from 2% of noise."""
    old, new = (_step_time(each, name) for each in (before, after))
    return old is not None and new is not None and new <= 1.02 * old


def _times(before: AmpReport, after: AmpReport, name: str) -> str:
    """Return an arm's change of step time, such as ``11.2 -> 10.0 ms``."""
    return units.change(*(units.duration(_step_time(each, name)) for each in (before, after)))


def _step_time(report: AmpReport, name: str) -> float | None:
    arm = report.arms.get(name)
    return arm.step_time_s if arm else None


def _memory(report: AmpReport, stored: AmpReport, allowed: float | None) -> Gate:
    now, before = _peak(report, "amp"), _peak(stored, "amp")
    if not now or not before:
        return _unknown("memory", allowed, "the peak of one of the two is not known")
    fp32 = units.change(*(units.size(_peak(each, "fp32")) for each in (stored, report)))
    detail = f"peak of amp {units.change(units.size(before), units.size(now))}, fp32 {fp32}"
    change = now / before - 1
    return _gate("memory", change, allowed, _held(change, allowed), detail)


def _loss(report: AmpReport, stored: AmpReport, allowed: float | None) -> Gate:
    """Judge the change of the amp arm's loss; of several, the one that got worse by most."""
    ours, theirs = (tail_means(each.arms.get("amp")) for each in (report, stored))
    keys = [key for key in theirs if key in ours]
    gone = [key for key in theirs if key not in ours]
    if not keys:
        return _unknown("loss", allowed, "the two have no loss in common")
    key = max(keys, key=lambda each: _relative(theirs[each], ours[each]))
    change = _relative(theirs[key], ours[key])
    fp32 = [tail_means(each.arms.get("fp32")).get(key) for each in (stored, report)]
    rise = _relative(*fp32) if None not in fp32 else 0.0  # type: ignore[arg-type]
    detail = (
        f"amp's loss{'' if key == 'loss' else f' of {key}'} {theirs[key]:.5g} -> {ours[key]:.5g}, "
        f"fp32's {' -> '.join(units.NOTHING if each is None else f'{each:.5g}' for each in fp32)}"
    )
    verdict, but = _held(change, allowed), ""
    atol = report.setting("loss_atol", (int, float), 0.0)
    if verdict == "fail" and ours[key] - theirs[key] <= atol:
        verdict, but = "pass", "that is less than loss_atol"
    elif verdict == "fail" and math.isfinite(change) and change <= (report.noise_floor or 0.0):
        rounding = units.share(report.noise_floor)
        verdict, but = "inconclusive", f"rounding alone moves it by {rounding}"
    elif verdict == "fail" and _held(_beyond(change, rise), allowed) == "pass":
        detail += "; fp32's rose as far: it is the model or its data"
    if verdict != "fail" and gone:
        return _unknown("loss", allowed, f"the baseline's loss {' and '.join(gone)} is gone")
    return _gate("loss", change, allowed, verdict, detail, but=but)


def _beyond(change: float, fp32s: float) -> float:
    """Return what is left of a relative change once the change of fp32 is taken out of it."""
    if not math.isfinite(change) or not math.isfinite(fp32s) or fp32s <= -1:
        return change
    return (1 + change) / (1 + fp32s) - 1


def _held(change: float, allowed: float | None) -> GateVerdict:
    return "pass" if allowed is None or change <= allowed + ROUNDING else "fail"


def _gate(
    metric: str,
    change: float,
    allowed: float | None,
    verdict: GateVerdict,
    detail: str,
    *,
    interval: tuple[float, float] | None = None,
    but: str = "",
) -> Gate:
    """Return a gate for a change.

    Args:
        metric: what changed.
        change: the relative change.
        allowed: the largest change for the worse; None if the metric is not gated.
        verdict: the verdict, if it is gated.
        detail: the figures behind the change.
        interval: the bounds of the change.
        but: why the verdict is not the one that the change suggests.
    """
    figure = units.signed(change)
    if interval is not None:
        figure += f" [{units.signed(interval[0])}, {units.signed(interval[1])}]"
    if allowed is None:
        said, verdict = figure, "not_gated"
    else:
        said = f"{figure} {_WORDS[verdict]} the {units.share(allowed)} allowed"
        if but:
            said = f"{figure} where {units.share(allowed)} is allowed, but {but}"
    low, high = interval or (None, None)
    return Gate(f"compare:{metric}", _threshold(metric, allowed), change, low, high, verdict,
                f"{said} ({detail})")  # fmt: skip


def _unknown(metric: str, allowed: float | None, reason: str) -> Gate:
    threshold = _threshold(metric, allowed)
    return Gate(f"compare:{metric}", threshold, None, None, None, "not_gated", reason)


def _threshold(metric: str, allowed: float | None) -> float | None:
    """Return the threshold of a change, which is negative for a speedup: less of it is worse."""
    return -allowed if allowed is not None and metric == "speedup" else allowed


def _peak(report: AmpReport, name: str) -> int | None:
    arm = report.arms.get(name)
    return arm.peak_bytes if arm else None


def _relative(before: float, after: float) -> float:
    """Return the relative change; infinity if the value was finite and is not any more."""
    if not math.isfinite(after):
        return math.inf if math.isfinite(before) else 0.0
    if after == before:
        return 0.0
    return (after - before) / abs(before) if before and math.isfinite(before) else math.inf
