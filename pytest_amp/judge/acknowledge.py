"""Hold a result against what was accepted, instead of against a baseline that is older."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from pytest_amp.judge.parity import tail_mean
from pytest_amp.results.acknowledged import Accepted, Acknowledged
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import Estimate


def figures(report: AmpReport, metric: Accepted) -> Mapping[str, float] | None:
    """Return a result's figures for a metric, to be accepted; None if they can't be.

    A speedup without an interval can't be, nor a loss that is not finite.
    """
    amp = report.arms.get("amp")
    if metric == "speedup":
        found = report.speedup
        if found is None or found.low is None or found.high is None:
            return None
        return {"value": found.value, "low": found.low, "high": found.high}
    if amp is None:
        return None
    if metric == "memory":
        return None if amp.peak_bytes is None else {"peak_bytes": float(amp.peak_bytes)}
    tails = {name: tail_mean(curve) for name, curve in amp.losses_by_key.items() if curve}
    return tails if tails and all(map(math.isfinite, tails.values())) else None


def onto(stored: AmpReport, accepted: Acknowledged) -> AmpReport:
    """Return the baseline as if it had the figures that were accepted.

    Raises:
        KeyError: a figure is missing.
    """
    given = accepted.figures
    if accepted.metric == "speedup":
        estimate = Estimate((given["value"],), given["low"], given["high"], 1)
        return replace(stored, speedup=estimate)
    amp = stored.amp
    if accepted.metric == "memory":
        amp = replace(amp, peak_bytes=int(given["peak_bytes"]))
    else:
        amp = replace(amp, losses_by_key={name: (value,) for name, value in given.items()})
    return replace(stored, arms={**stored.arms, "amp": amp})
