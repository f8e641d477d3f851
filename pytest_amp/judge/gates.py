"""Compare each figure with its threshold, and say why the verdict is what it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from pytest_amp import units
from pytest_amp.judge import loss, speed
from pytest_amp.judge.case import Limits
from pytest_amp.judge.speed import below
from pytest_amp.observations import Observations
from pytest_amp.results.values import Finding, Gate, Verdict


def coverage(seen: Observations) -> float | None:
    """Return the share of the amp arm's FLOPs in the amp dtype; None if that is unknown.

    Where linear layers are to run in float8, what they do counts.
    """
    operators = seen.amp.operators
    if operators is None or unseen(seen) or not operators.flops:
        return None
    float8 = operators.float8_flops() if seen.recipes.amp.float8 else 0
    return (operators.flops_by_dtype.get(seen.dtype, 0) + float8) / operators.flops


def unseen(seen: Observations) -> str | None:
    """Return why part of the FLOPs may have gone unseen; None if all were seen."""
    amp = seen.amp.operators
    if amp is None:
        return "no step was inspected"
    if amp.hidden:
        return f"not seen: {', '.join(amp.hidden)}"
    if amp.unknown:
        return f"no FLOP formula for {', '.join(amp.unknown)}"
    return None


def judge(seen: Observations, limits: Limits) -> tuple[Gate, ...]:
    """Return all gates, in the order in which they are reported."""
    return tuple(for_other_devices(gate, limits, seen.device_type) for gate in _gates(seen, limits))


def for_other_devices(gate: Gate, limits: Limits, device_type: str) -> Gate:
    """Note on a gate whose threshold names devices that this is none of them."""
    devices = limits.elsewhere.get(gate.name)
    if devices is None:
        return gate
    named = " and ".join(devices)
    reason = f"gated on {named} only, and this is {device_type}: {gate.reason}"
    return replace(gate, only_for=devices, reason=reason)


def verdict_of(gates: Iterable[Gate], findings: Iterable[Finding]) -> Verdict:
    """Return a test's verdict: a single failed gate or a single standing error fails it."""
    verdicts = {gate.verdict for gate in gates}
    if "fail" in verdicts or any(finding.stands for finding in findings):
        return "fail"
    return "inconclusive" if "inconclusive" in verdicts else "pass"


def _gates(seen: Observations, limits: Limits) -> Iterator[Gate]:
    yield speed.gate(seen, limits)
    yield _memory(seen, limits)
    yield loss.gate(seen, limits)
    yield _coverage(seen, limits)
    yield _skips(seen, limits)


def _memory(seen: Observations, limits: Limits) -> Gate:
    wanted = limits.min_memory_reduction
    fp32, amp = seen.fp32.peak_bytes, seen.amp.peak_bytes
    if not fp32 or not amp:
        unknown = seen.amp.peak_unknown or seen.fp32.peak_unknown
        reason = unknown or (
            f"{seen.device} has no peak memory counter"
            if fp32 is None or amp is None
            else "no allocation was seen (a torch.profiler of the step's own would hide them all)"
        )
        return Gate("memory_reduction", wanted, None, None, None, "not_gated", reason)
    value = 1 - amp / fp32
    shown = f"{units.share(value)} ({units.size(fp32)} -> {units.size(amp)})"
    return _at_least("memory_reduction", wanted, value, shown)


def _at_least(name: str, wanted: float | None, value: float, shown: str) -> Gate:
    """Make the gate of a share that is counted rather than sampled."""
    if wanted is None:
        return Gate(name, None, value, None, None, "not_gated", shown)
    passed = value >= wanted
    limit = units.share(wanted)
    reason = f"{shown}, {f'at least {limit}' if passed else below(limit, wanted - value)}"
    return Gate(name, wanted, value, None, None, "pass" if passed else "fail", reason)


def _coverage(seen: Observations, limits: Limits) -> Gate:
    wanted, value = limits.min_coverage, coverage(seen)
    if value is None:
        reason = unseen(seen) or "the step has no matmul, convolution or attention"
        return Gate("coverage", wanted, None, None, None, "not_gated", f"unknown: {reason}")
    return _at_least(
        "coverage", wanted, value, f"{units.share(value)} of the FLOPs ran in {seen.dtype}"
    )


def _skips(seen: Observations, limits: Limits) -> Gate:
    wanted, value = limits.max_skipped_steps, seen.amp.skipped_steps
    shown = f"the GradScaler skipped {units.plural(value, 'step')}"
    if wanted is None:
        return Gate("skipped_steps", None, value, None, None, "not_gated", shown)
    passed = value <= wanted
    reason = f"{shown}, {'at most' if passed else 'more than'} {wanted:g}"
    return Gate("skipped_steps", wanted, value, None, None, "pass" if passed else "fail", reason)
