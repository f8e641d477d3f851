"""Compare each figure with its threshold, and say why the verdict is what it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from pytest_amp import units
from pytest_amp.judge import parity, speed
from pytest_amp.judge.case import Limits
from pytest_amp.judge.speed import below
from pytest_amp.observations import REDUCED, Observations, ParityRun
from pytest_amp.results.values import Finding, Gate, GateVerdict, Verdict

# If the arms draw different random numbers, one run with another stream is a small sample of what
# that does to a loss. A difference up to this many times the sample is not blamed on AMP.
OTHER_STREAM_MARGIN = 2.0
# How many times what rounding does to a small loss amp may differ from fp32 without being blamed.
# Healthy regressions stay below 1; a learning rate of a third under amp gives 7 and more
# (benchmarks/small_losses.py).
ROUNDINGS = 3
# Among several losses, the one with the gravest verdict decides.
_GRAVITY: tuple[GateVerdict, ...] = ("not_gated", "pass", "inconclusive", "fail")


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


def draws_differ(fp32: ParityRun, amp: ParityRun) -> bool:
    """Return whether the amp arm drew other random numbers than fp32, because of a reduced dtype.

    Many kernels draw the same numbers in every dtype, as dropout on a CPU does. If the draws were
    not looked at, they count as different.
    """
    if amp.operators is None or not amp.operators.random_dtypes & set(REDUCED):
        return False
    draws = amp.operators.draws
    return draws is None or fp32.operators is None or draws != fp32.operators.draws


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
    yield _loss(seen, limits)
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


def _loss(seen: Observations, limits: Limits) -> Gate:
    relative = limits.max_loss_diff or 0.0
    seen = replace(seen, amp=replace(seen.amp, losses=parity.once_scaled(seen.amp)))
    judged = [
        (tail, *_loss_verdict(seen, limits, tail))
        for tail in parity.compare(seen.fp32.losses, seen.amp.losses)
    ]
    worst, verdict, reason = max(
        judged,
        key=lambda each: (
            _GRAVITY.index(each[1]),
            each[0].excess(relative, _allowance(seen, limits, each[0].key)),
        ),
    )
    return Gate("loss_diff", limits.max_loss_diff, worst.difference, None, None, verdict, reason)


def _loss_verdict(
    seen: Observations, limits: Limits, tail: parity.TailComparison
) -> tuple[GateVerdict, str]:
    """Judge one loss, and say why."""
    name = f" of {tail.key!r}" if len(seen.fp32.losses) > 1 else ""
    bad = _first_bad(seen.amp.losses[tail.key])
    if bad is not None:
        fp32_bad = _first_bad(seen.fp32.losses[tail.key])
        too = "" if fp32_bad is None else f", nor is fp32's at step {fp32_bad + 1}: both diverge"
        return "fail", f"the amp loss{name} is not finite at step {bad + 1}{too}"
    shown = f"{_relative(tail.absolute, tail)}{name} ({tail.fp32:.5g} -> {tail.amp:.5g})"
    if limits.max_loss_diff is None:
        return "not_gated", shown
    if not math.isfinite(tail.fp32):
        return "inconclusive", (
            f"the fp32 loss{name} is not finite, so there is nothing to compare with"
        )
    moved = (seen.fp32.moved, seen.amp.moved)
    if moved == (False, False):
        skips = f" (the GradScaler skipped {seen.amp.skipped_steps})" * bool(seen.amp.skipped_steps)
        return "inconclusive", (
            f"no trained parameter moved in {units.plural(len(seen.amp.losses[tail.key]), 'step')}"
            f"{skips}: nothing was trained, so the curves say nothing"
        )
    if seen.amp.stalled:
        return "inconclusive", (
            f"the GradScaler skipped {units.plural(seen.amp.skipped_steps, 'step')}, all of the "
            "last quarter among them: training stands still, so the curves say nothing"
        )
    if False in moved:
        still, other = ("amp", "fp32") if moved[0] else ("fp32", "amp")
        return "fail", f"the {still} arm's parameters never moved, where the {other} arm's did"
    threshold = units.share(limits.max_loss_diff)
    allowance = _allowance(seen, limits, tail.key)
    if tail.excess(limits.max_loss_diff, allowance) <= 1:
        if tail.difference <= limits.max_loss_diff:
            return "pass", f"{shown} is at most {threshold}"
        if allowance < limits.loss_atol:
            return "pass", f"{shown} is within {_as_rounding_does(seen, allowance)}"
        return "pass", f"{shown} is within loss_atol={limits.loss_atol:g}"
    drift = parity.drift(seen.fp32.losses, seen.floor, tail.key)
    drifts = _relative(drift, tail)
    source = "another random stream" if seen.floor.other_stream else "rounding"
    alone = f"{source} alone moves this model's loss by {drifts}"
    if tail.absolute <= drift:
        return "inconclusive", f"{shown} is beyond {threshold}, but {alone}: raise max_loss_diff"
    if draws_differ(seen.fp32, seen.amp) and tail.absolute <= OTHER_STREAM_MARGIN * drift:
        return "inconclusive", (
            f"{shown} is beyond {threshold}, but the arms drew different random numbers, which "
            f"alone moves the loss by {drifts}"
        )
    if tail.excess(limits.max_loss_diff, limits.loss_atol) <= 1:
        return "fail", (
            f"{shown} is beyond {threshold}, and beyond {_as_rounding_does(seen, allowance)}"
        )
    return "fail", f"{shown} is beyond {threshold}; {alone}"


def rests_on_loss_atol(seen: Observations, limits: Limits) -> bool:
    """Return whether a loss passes by the default `loss_atol` alone.

    That default suits losses around 1. For others `Observations.rounded` has to show what the dtype
    can reach.
    """
    if limits.max_loss_diff is None or limits.loss_atol_is_chosen:
        return False
    amp = parity.once_scaled(seen.amp)
    return any(
        limits.max_loss_diff < tail.difference
        and tail.excess(limits.max_loss_diff, limits.loss_atol) <= 1
        for tail in parity.compare(seen.fp32.losses, amp)
    )


def _allowance(seen: Observations, limits: Limits, key: str) -> float:
    """Return the absolute loss difference that is accepted."""
    if seen.rounded is None or limits.loss_atol_is_chosen:
        return limits.loss_atol
    rounding = parity.rounding(seen.fp32.losses, seen.rounded, key)
    return min(limits.loss_atol, ROUNDINGS * rounding)


def _as_rounding_does(seen: Observations, allowance: float) -> str:
    return f"{allowance:.3g}, {ROUNDINGS} times what rounding every product to {seen.dtype} does"


def _relative(difference: float, tail: parity.TailComparison) -> str:
    """Format a difference as a share of the fp32 loss, or plainly if that loss is zero."""
    share = difference / abs(tail.fp32) if tail.fp32 else math.inf
    return units.share(share) if math.isfinite(share) else f"{difference:.3g}"


def _first_bad(losses: Sequence[float]) -> int | None:
    return next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)


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
