"""Say which arm changes its speed for several pairs at a time, for how long, and what to try."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from pytest_amp import units
from pytest_amp.judge import abstain
from pytest_amp.judge.contention import ARMS
from pytest_amp.observations import Timing

# An arm has two modes if at least this share of the variance of its times lies between them. Of a
# normal distribution, the best split leaves 64% between both halves.
_TWO_LEVELS = 0.8


class Modes(NamedTuple):
    """How an arm's blocks change their speed.

    Attributes:
        arm: the arm that does so, or that does so more: "fp32" or "amp".
        levels_s: the two step times that it keeps, in seconds; None if there are more than two.
        pairs: for how many pairs it keeps one, on average.
        lasts_s: for how many seconds.
    """

    arm: str
    levels_s: tuple[float, float] | None
    pairs: float
    lasts_s: float

    def __str__(self) -> str:
        lasts = f"about {self.pairs:.0f} pairs ({units.duration(self.lasts_s)}) at a time"
        if self.levels_s is None:
            return f"{self.arm} blocks keep a speed for {lasts}"
        low, high = map(units.duration, self.levels_s)
        return f"a step of the {self.arm} arm takes {low} or {high}, for {lasts}"


def found(timing: Timing) -> Modes:
    """Return the modes of the arm whose speed the ratios follow more.

    What changes both arms alike leaves no trace in the ratios.
    """
    logs = {name: [math.log(each) for each in times] for name, times in _times(timing).items()}
    ratios = [math.log(ratio) for ratio in timing.ratios]
    arm = max(ARMS, key=lambda name: abs(_correlation(logs[name], ratios)))
    times = _times(timing)[arm]
    cut, between = _best_cut(times)
    ordered = sorted(times)
    low, high = ordered[:cut], ordered[cut:]
    slow = [time > low[-1] for time in times]
    stays = len(times) / (1 + sum(a != b for a, b in pairwise(slow)))
    levels = (statistics.median(low), statistics.median(high)) if between >= _TWO_LEVELS else None
    return Modes(arm, levels, stays, stays * timing.elapsed_s / len(times))


def remedy(timing: Timing) -> str:
    """Return what to try against modes."""
    machine = timing.machine
    if machine is not None and machine.device_type != "cpu":
        locks = " (nvidia-smi -lgc)" if machine.device_type == "cuda" else ""
        return f"lock the GPU's clocks{locks}, or raise max_time"
    if machine is not None and machine.threads is not None and machine.threads > 1:
        return "set OMP_NUM_THREADS=1, since threads that wait for each other wake up late"
    return "keep the process on one processor (taskset -c 0 on Linux), or raise max_time"


def as_good_as(ratios: Sequence[float]) -> int:
    """Return how many independent pairs would say as much; at least 1."""
    return max(1, round(abstain.standing(tuple(ratios)) * len(ratios)))


def _times(timing: Timing) -> dict[str, tuple[float, ...]]:
    return dict(zip(ARMS, (timing.fp32_step_s, timing.amp_step_s), strict=True))


def _correlation(a: Sequence[float], b: Sequence[float]) -> float:
    if len(set(a)) < 2 or len(set(b)) < 2:
        return 0.0
    return statistics.correlation(a, b)


def _best_cut(times: Sequence[float]) -> tuple[int, float]:
    """Return where to cut the ordered times in two, so that as much variance lies between them.

    Returns:
        How many times are below the cut, and the share of the variance that lies between both
        groups. If all are equal, all are below it.
    """
    ordered, count = sorted(times), len(times)
    mean = statistics.fmean(times)
    squares = math.fsum((time - mean) ** 2 for time in times)
    best, sum_below, cut_at = 0.0, 0.0, count
    for cut in range(1, count):
        sum_below += ordered[cut - 1] - mean
        if ordered[cut] == ordered[cut - 1]:
            continue
        between = sum_below**2 * (1 / cut + 1 / (count - cut))
        if between > best:
            best, cut_at = between, cut
    return cut_at, best / squares if squares else 0.0
