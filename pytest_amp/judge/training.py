"""Judge what a whole training came to: the validation of its last epoch in both arms."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

from pytest_amp import units
from pytest_amp.judge.case import Limits
from pytest_amp.results.training import Epoch
from pytest_amp.results.values import Gate, GateVerdict

Epochs = Sequence[Epoch]
UNTRAINED = "the test is no training: give its setup to amp_benchmark.train"


def judge(
    fp32: Epochs, amp: Epochs, limits: Limits, drifted: Callable[[], Epochs]
) -> tuple[Gate, ...]:
    """Return the gates of a training.

    Args:
        fp32: the reference's epochs.
        amp: the candidate's.
        limits: the thresholds in force.
        drifted: trains the reference once more, from weights that are a rounding away. It is called
            only if a threshold is missed.
    """
    again: list[Epochs] = []

    def once() -> Epochs:
        if not again:
            again.append(drifted())
        return again[0]

    return (
        _gate("val_loss_diff", limits, limits.max_val_loss_diff, fp32, amp, once),
        _gate("accuracy_diff", limits, limits.max_accuracy_diff, fp32, amp, once),
    )


def untrained(limits: Limits, chosen: Collection[str]) -> tuple[Gate, ...]:
    """Return the gates of a test that is no training, but has thresholds for one.

    Args:
        limits: the thresholds in force.
        chosen: the names of the gates whose threshold is the test's own.
    """
    wanted = {
        "val_loss_diff": limits.max_val_loss_diff,
        "accuracy_diff": limits.max_accuracy_diff,
    }
    return tuple(
        Gate(name, threshold, None, None, None, "not_gated", UNTRAINED)
        for name, threshold in wanted.items()
        if name in chosen and threshold is not None
    )


def _gate(
    name: str,
    limits: Limits,
    wanted: float | None,
    fp32: Epochs,
    amp: Epochs,
    drifted: Callable[[], Epochs],
) -> Gate:
    key = "accuracy" if name == "accuracy_diff" else "loss"
    ours, theirs = _last(amp, key), _last(fp32, key)
    if ours is None or theirs is None:
        if f"max_{name}" not in limits.chosen:
            wanted = None  # nobody asked
        missing = "nothing was evaluated" if not amp[-1].val else f"evaluate() returned no {key}"
        return Gate(name, wanted, None, None, None, "not_gated", missing)
    if not (math.isfinite(ours) and math.isfinite(theirs)):
        arm = "fp32" if math.isfinite(ours) else "amp"
        reason = f"the {arm} validation {key} is not finite in epoch {len(amp)}"
        verdict: GateVerdict = "inconclusive" if arm == "fp32" else "fail"
        return Gate(
            name, wanted, None, None, None, verdict if wanted is not None else "not_gated", reason
        )
    value = _difference(key, ours, theirs)
    shown = f"{_written(key, value)} ({theirs:.5g} -> {ours:.5g}, epoch {len(amp)})"
    if wanted is None:
        return Gate(name, None, value, None, None, "not_gated", shown)
    limit = _written(key, wanted)
    if value <= wanted:
        return Gate(name, wanted, value, None, None, "pass", f"{shown} is at most {limit}")
    other = _last(drifted(), key)
    drift = _difference(key, other, theirs) if other is not None else math.nan
    alone = f"rounding alone moves this training's {key} by {_written(key, drift)}"
    if not math.isfinite(drift):
        drift, alone = math.inf, f"rounding alone makes this training's {key} diverge"
    if value <= drift:
        reason = f"{shown} is beyond {limit}, but {alone}: raise max_{name}"
        return Gate(name, wanted, value, None, None, "inconclusive", reason)
    return Gate(name, wanted, value, None, None, "fail", f"{shown} is beyond {limit}; {alone}")


def _last(epochs: Epochs, key: str) -> float | None:
    return epochs[-1].val.get(key) if epochs else None


def _difference(key: str, ours: float, theirs: float) -> float:
    """Return a loss's difference relative to the reference's, and an accuracy's plainly."""
    apart = abs(ours - theirs)
    if key == "accuracy":
        return apart
    return apart / abs(theirs) if theirs else (math.inf if apart else 0.0)


def _written(key: str, value: float) -> str:
    return f"{value:.4g}" if key == "accuracy" else units.share(value)
