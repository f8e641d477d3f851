"""Decide from the settings how long to time a test, and which thresholds it has to meet."""

from __future__ import annotations

import math

from pytest_amp import units
from pytest_amp.codes import GATES
from pytest_amp.judge import abstain, speed
from pytest_amp.judge.case import Limits
from pytest_amp.lab.phases import timing
from pytest_amp.lab.workbench import Workbench
from pytest_amp.observations import Timing
from pytest_amp.settings.resolved import Settings
from pytest_amp.settings.thresholds import DeviceNames, Threshold

# If no threshold has to be decided, timing ends once the speedup's interval reaches no further than
# this to either side.
PRECISE_HALF_WIDTH = 0.02
# The same, as a share of the drop that --amp-compare-fail allows. Together with the baseline's
# interval, this one then blurs half of that drop.
SHARE_OF_DROP = 1 / 4
UNGATED_SHARE_OF_TIME = 1 / 3


def plan_of(bench: Workbench, settings: Settings, limits: Limits) -> timing.Plan:
    """Return the plan for timing: stop once it is decided, precise enough, or out of time.

    Args:
        bench: gets a note if `max_time` is too short to decide anything.
        settings: the test's settings.
        limits: its thresholds on this device.
    """
    wanted, rate, budget = limits.min_speedup, limits.error_rate, settings.max_time
    drop = settings.compare_fail.get("speedup")
    half_width = drop * SHARE_OF_DROP if drop else PRECISE_HALF_WIDTH
    gated = wanted is not None or drop is not None
    decided, shown = False, ""

    def stop(timed: Timing) -> str | None:
        nonlocal shown
        if abstain.is_worth_a_look(len(timed.ratios)):
            shown = str(speed.estimate(timed, rate) or "")
            if reason := look(timed):
                return reason
        over = timed.elapsed_s >= budget * (1 if gated else UNGATED_SHARE_OF_TIME)
        return "budget" if over else None

    def look(timed: Timing) -> str | None:
        nonlocal decided  # later pairs can't take an answer back
        if wanted is not None and not decided:
            decided = speed.decision(timed, wanted, rate) is not None
        if decided and drop is None:
            return "decided"
        bounds = abstain.interval(timed.ratios, rate)
        is_precise = bounds and (bounds[1] - bounds[0]) / 2 <= half_width * bounds[0]
        return "precise" if is_precise and (decided or wanted is None) else None

    def foresee(pair_s: float) -> None:
        fewest = abstain.fewest_pairs(rate)
        if gated and pair_s * fewest > budget:
            needed = math.ceil(1.1 * pair_s * fewest)
            note = (
                f"max_time={budget:g} s is too short: the fewest pairs that can decide "
                f"({fewest} of {units.duration(pair_s)}) need max_time={needed}"
            )
            bench.notes.append(note)
            bench.progress.say(note)

    return timing.Plan(settings.warmup, stop, foresee, lambda: shown, alone=True)


def limits_of(settings: Settings, names: DeviceNames) -> Limits:
    """Return the thresholds that a test's settings put in force on the device with these names."""

    def on(threshold: Threshold | None) -> float | None:
        return None if threshold is None else threshold.on(names)

    return Limits(
        min_speedup=None if settings.static else on(settings.min_speedup),
        min_memory_reduction=on(settings.min_memory_reduction),
        max_loss_diff=on(settings.max_loss_diff),
        loss_atol=settings.loss_atol,
        loss_atol_is_chosen=settings.sources["loss_atol"] != "default",
        reference_is_chosen=settings.sources["reference"] != "default",
        max_val_loss_diff=on(settings.max_val_loss_diff),
        max_accuracy_diff=on(settings.max_accuracy_diff),
        min_coverage=on(settings.min_coverage),
        max_skipped_steps=on(settings.max_skipped_steps),
        error_rate=settings.error_rate,
        max_time=settings.max_time,
        static=settings.static,
        chosen=frozenset(name for name, source in settings.sources.items() if source != "default"),
        elsewhere={
            GATES[name]: threshold.gated
            for name, threshold in settings.thresholds.items()
            if not threshold.names(names)
        },
    )
