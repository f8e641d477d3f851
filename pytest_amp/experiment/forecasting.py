"""Forecast the speedup of a test that was measured."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_amp.errors import unless_our_bug
from pytest_amp.judge import forecasts
from pytest_amp.lab.machine import ceilings
from pytest_amp.lab.machine.global_state import quietly
from pytest_amp.lab.workbench import Workbench
from pytest_amp.observations import Observations
from pytest_amp.results.forecast import HERE, Forecast

__tracebackhide__ = unless_our_bug


_OTHER_RULES = (
    "the forecasts are of operators that ran by autocast's rules for {device}, which differ from "
    "CUDA's: --amp-static --amp-policy=cuda forecasts by those"
)


def elsewhere(bench: Workbench, seen: Observations, names: Sequence[str]) -> tuple[Forecast, ...]:
    """Return a forecast for each of these GPUs, and leave a note if it rests on other rules."""
    found = forecasts.elsewhere(seen, names)
    has_autocast = any(each.autocast_dtype for each in seen.recipes)
    if has_autocast and seen.rules_of != "cuda" and any(each.low is not None for each in found):
        bench.notes.append(_OTHER_RULES.format(device=bench.device.type))
    return found


def attainable(bench: Workbench, seen: Observations) -> Forecast | None:
    """Return the speedups that this device could show; None if nothing was timed on it."""
    if seen.timing is None or not seen.timing.fp32_step_s:
        return None
    if reason := forecasts.not_attainable(seen):
        return Forecast(HERE, reason=reason)
    bench.progress.at("ceilings", None)
    arms = forecasts.Arms.of(seen)
    try:
        with bench.globals.preserved(), quietly():
            best, usual = ceilings.measured(bench.device, arms.kinds, arms.dtypes)
        bench.device.empty_cache()
    except RuntimeError as error:  # whatever it is, the test itself has been measured
        first, *_ = str(error).splitlines() or [type(error).__name__]
        return Forecast(HERE, reason=f"the device's ceilings could not be measured ({first})")
    return forecasts.here(seen, best, usual)
