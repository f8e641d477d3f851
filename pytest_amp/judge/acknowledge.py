"""Hold a result against what was accepted, instead of against a baseline from before that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from pytest_amp.judge.parity import tail_means
from pytest_amp.results.acknowledged import Accepted, Acknowledged
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import Estimate

_FIGURES: Mapping[str, frozenset[str]] = {
    "speedup": frozenset({"value", "low", "high"}),
    "memory": frozenset({"peak_bytes"}),
    "missing": frozenset(),
    "new": frozenset(),
}


def figures(report: AmpReport, stored: AmpReport, metric: Accepted) -> Mapping[str, float] | None:
    """Return a result's figures for a metric, to be accepted; None if they can't be.

    A speedup without an interval can't be, nor a loss that is not finite. Of several losses, only
    those that are worse than the baseline's are accepted.
    """
    amp, found = report.arms.get("amp"), report.speedup
    if metric == "speedup":
        if found is None or found.low is None or found.high is None:
            return None
        return {"value": found.value, "low": found.low, "high": found.high}
    if amp is None:
        return None
    if metric == "memory":
        return None if amp.peak_bytes is None else {"peak_bytes": float(amp.peak_bytes)}
    before, now = tail_means(stored.arms.get("amp")), tail_means(amp)
    worse = {name: now[name] for name in now if name in before and not now[name] <= before[name]}
    return worse if worse and all(map(math.isfinite, worse.values())) else None


def problem(accepted: Acknowledged) -> str | None:
    """Return what is wrong with an entry that somebody may have written by hand; None if nothing.

    A figure that is not finite would let everything pass.
    """
    given = accepted.figures
    wanted = _FIGURES.get(accepted.metric)
    if wanted is not None and set(given) != wanted:
        return f"its figures are {sorted(given)}, not {sorted(wanted)}"
    if accepted.metric == "loss" and not given:
        return "it names no loss"
    if not all(map(math.isfinite, given.values())):
        return "a figure is not finite"
    if accepted.metric == "speedup" and not 0 < given["low"] <= given["value"] <= given["high"]:
        return "its speedup does not lie within its bounds"
    if accepted.metric == "memory" and given["peak_bytes"] <= 0:
        return "its peak is not above zero"
    if accepted.of[:1] != (accepted.test,):
        return f"it is of {accepted.of[:1]}, and not of its test"
    return None


def onto(stored: AmpReport, accepted: Acknowledged) -> AmpReport:
    """Return the baseline as if it had the figures that were accepted."""
    given = accepted.figures
    if accepted.metric == "speedup":
        estimate = Estimate((given["value"],), given["low"], given["high"], 1)
        return replace(stored, speedup=estimate)
    amp = stored.amp
    if accepted.metric == "memory":
        amp = replace(amp, peak_bytes=int(given["peak_bytes"]))
    else:
        curves = {name: (value,) for name, value in given.items() if name in amp.losses_by_key}
        amp = replace(amp, losses_by_key={**amp.losses_by_key, **curves})
    return replace(stored, arms={**stored.arms, "amp": amp})
