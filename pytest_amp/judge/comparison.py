"""A result against a stored one: what changed in both arms, and whether it may."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pytest_amp import units
from pytest_amp.judge.parity import tail_mean
from pytest_amp.results import AmpReport, ArmRun, Baseline, Environment, Gate, GateVerdict
from pytest_amp.settings import METRICS

ROUNDING = 1e-9  # of 630 / 600 - 1
VERSIONS = ("torch", "cuda", "cudnn", "driver")


def compared(
    report: AmpReport, stored: AmpReport, origin: Baseline, allowed: Mapping[str, float]
) -> AmpReport:
    """The report with a gate per metric; `allowed` has the largest relative change for the worse.

    A metric that is not in it is told and not gated.
    """
    found = (
        _speedup(report, stored, allowed.get("speedup")),
        _memory(report, stored, allowed.get("memory")),
        _loss(report, stored, allowed.get("loss")),
    )
    differing = tuple(differences(stored.environment, report.environment))
    return _judged(replace(report, baseline=replace(origin, differences=differing)), found)


def without_baseline(report: AmpReport, why: str, allowed: Mapping[str, float]) -> AmpReport:
    """The report with gates that have nothing to be held against, and say why."""
    reason = f"no baseline: {why}"
    metrics = [metric for metric in METRICS if metric in allowed] or METRICS[:1]
    gates = [_gate(metric, allowed.get(metric), None, reason) for metric in metrics]
    notes = report.notes if allowed else (*report.notes, reason)  # a gate says it otherwise
    return _judged(replace(report, notes=notes), gates)


def differences(before: Environment | None, after: Environment | None) -> Iterator[str]:
    """What differs of two environments: ``torch 2.12.0 -> 2.13.0``"""
    if before is None or after is None:
        return
    for name in VERSIONS:
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            yield units.printable(f"{name} {old or 'none'} -> {new or 'none'}")
    for name in sorted({*before.flags, *after.flags}):
        old, new = before.flags.get(name), after.flags.get(name)
        if old != new:
            yield units.printable(f"{name} {old} -> {new}")


def _judged(report: AmpReport, found: Sequence[Gate]) -> AmpReport:
    verdict = report.verdict
    verdicts = {gate.verdict for gate in found}
    if "fail" in verdicts and verdict in ("pass", "inconclusive"):
        verdict = "fail"
    elif "inconclusive" in verdicts and verdict == "pass":
        verdict = "inconclusive"
    return replace(report, verdict=verdict, gates=(*report.gates, *found))


def _speedup(report: AmpReport, stored: AmpReport, allowed: float | None) -> Gate:
    """Called a regression only where both intervals together exclude the allowed drop."""
    now, before = report.speedup, stored.speedup
    if now is None or before is None or before.value <= 0:
        arm = "this run" if now is None else "the baseline"
        return _gate("speedup", _down(allowed), None, f"{arm} was not timed")
    change = now.value / before.value - 1
    low = high = None
    if now.low and now.high and before.low and before.high:
        low, high = now.low / before.high - 1, now.high / before.low - 1
    times = ", ".join(f"{name} {_times(stored, report, name)}" for name in ("fp32", "amp"))
    said = (
        f"{units.signed(change)} {_interval(low, high)}".rstrip()
        + f" ({units.ratio(before.value)} -> {units.ratio(now.value)}; {times})"
    )
    verdict: GateVerdict = "not_gated"
    if allowed is not None:
        said += f", and at most {units.signed(-allowed)} is allowed"
        if low is None or high is None:
            whose = "this run" if not (now.low and now.high) else "the baseline"
            verdict, said = "inconclusive", f"{said}, but too few pairs of {whose} tell"
        elif low < -allowed <= high:
            verdict = "inconclusive"
        else:
            verdict = "fail" if high < -allowed else "pass"
    return Gate("compare:speedup", _down(allowed), change, low, high, verdict, said)


def _times(before: AmpReport, after: AmpReport, name: str) -> str:
    """11.2 -> 10.0 ms"""
    old, new = (
        units.duration(each.arms[name].step_time_s if name in each.arms else None)
        for each in (before, after)
    )
    return units.change(old, new)


def _memory(report: AmpReport, stored: AmpReport, allowed: float | None) -> Gate:
    now, before = _peak(report, "amp"), _peak(stored, "amp")
    if not now or not before:
        return _gate("memory", allowed, None, "the peak of one of the two is not known")
    change = now / before - 1
    fp32 = units.change(*(units.size(_peak(each, "fp32")) for each in (stored, report)))
    said = (
        f"{units.signed(change)} (peak of amp {units.change(units.size(before), units.size(now))}, "
        f"fp32 {fp32})"
    )
    return _held("memory", change, allowed, said)


def _loss(report: AmpReport, stored: AmpReport, allowed: float | None) -> Gate:
    """The amp arm's loss, of several the one that changed for the worse most."""
    ours, theirs = (_losses(each.arms.get("amp")) for each in (report, stored))
    keys = [key for key in ours if key in theirs]
    if not keys:
        return _gate("loss", allowed, None, "the two have no loss in common")
    key = max(keys, key=lambda each: _relative(theirs[each], ours[each]))
    change = _relative(theirs[key], ours[key])
    fp32 = [_losses(each.arms.get("fp32")).get(key) for each in (stored, report)]
    name = "" if key == "loss" else f" of {key}"
    said = (
        f"{units.signed(change)} (amp's loss{name} {theirs[key]:.5g} -> {ours[key]:.5g}, "
        f"fp32's {' -> '.join(units.NOTHING if each is None else f'{each:.5g}' for each in fp32)})"
    )
    atol = report.settings["loss_atol"].value if "loss_atol" in report.settings else 0.0
    if allowed is not None and change > allowed + ROUNDING:
        if ours[key] - theirs[key] <= (atol or 0.0):
            reason = f"{said}, which is less than loss_atol"
            return Gate("compare:loss", allowed, change, None, None, "pass", reason)
        if change <= (report.noise_floor or 0.0):
            reason = f"{said}, and rounding alone moves it by {units.share(report.noise_floor)}"
            return Gate("compare:loss", allowed, change, None, None, "inconclusive", reason)
    return _held("loss", change, allowed, said)


def _held(metric: str, change: float, allowed: float | None, said: str) -> Gate:
    if allowed is None:
        return Gate(f"compare:{metric}", None, change, None, None, "not_gated", said)
    verdict: GateVerdict = "pass" if change <= allowed + ROUNDING else "fail"
    said += f", and at most {units.signed(allowed)} is allowed"
    return Gate(f"compare:{metric}", allowed, change, None, None, verdict, said)


def _gate(metric: str, threshold: float | None, value: float | None, reason: str) -> Gate:
    return Gate(f"compare:{metric}", threshold, value, None, None, "not_gated", reason)


def _down(allowed: float | None) -> float | None:
    return None if allowed is None else -allowed


def _peak(report: AmpReport, name: str) -> int | None:
    arm = report.arms.get(name)
    return arm.peak_bytes if arm else None


def _losses(arm: ArmRun | None) -> dict[str, float]:
    curves = arm.losses_by_key if arm else {}
    return {key: tail_mean(curve) for key, curve in curves.items() if curve}


def _relative(before: float, after: float) -> float:
    """How much higher, as a share of what it was; infinite for what is not finite any more."""
    if not math.isfinite(after):
        return math.inf if math.isfinite(before) else 0.0
    if after == before:
        return 0.0
    return (after - before) / abs(before) if before and math.isfinite(before) else math.inf


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{units.signed(low)}, {units.signed(high)}]"
