"""Time pairs of blocks of steps: fp32 and amp in random order, synchronized after each block."""

from __future__ import annotations

import gc
import random
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import torch

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.arm import ArmName, Setup
from pytest_amp.lab.scaling.skip_check import SkipCheck
from pytest_amp.lab.workbench import Resident, Workbench
from pytest_amp.observations import Timing

__tracebackhide__ = unless_our_bug

LEAST_BLOCK_S = 0.010
MOST_BLOCK_STEPS = 10_000
# A float16 scaler starts high and skips steps until its scale fits. The warm-up may take this many
# steps more for it.
MOST_SETTLING_STEPS = 40


@dataclass(frozen=True)
class Side:
    """One of the two sides to time: an arm as it is, or with a change to its setup."""

    arm: ArmName
    change: Callable[[Setup], Setup] = lambda setup: setup

    def built(self, bench: Workbench) -> AbstractContextManager[Resident]:
        """Build this side; it is released at the end of the block."""
        return bench.built(self.arm, self.change)


Sides = tuple[Side, Side]
ARMS: Sides = (Side("fp32"), Side("amp"))


class Pairs(NamedTuple):
    """The pairs of blocks that were timed so far, in order.

    Attributes:
        ratios: the first side's seconds per step by the second's.
        step_s: each side's seconds per step.
        elapsed_s: how long timing has taken.
    """

    ratios: Sequence[float]
    step_s: tuple[Sequence[float], Sequence[float]]
    elapsed_s: float


# Returns why to stop, or None to go on.
Stop = Callable[[Pairs], "str | None"]


@dataclass(frozen=True)
class Plan:
    """How to sample.

    Attributes:
        warmup: the steps that each arm runs before anything is timed.
        stop: takes what was timed so far; returns why to stop, or None to go on.
        foresee: is told how many seconds a pair takes, before the first pair.
        show: formats the running estimate.
    """

    warmup: int
    stop: Stop
    foresee: Callable[[float], None] = lambda _: None
    show: Callable[[Sequence[float]], str] = lambda _: ""


@dataclass(frozen=True)
class Block:
    """A timed block.

    Attributes:
        step_s: seconds per step.
        skipped: whether a GradScaler skipped any of the steps.
    """

    step_s: float
    skipped: bool


def run(bench: Workbench, plan: Plan, sides: Sides = ARMS) -> Timing:
    """Time both sides, together in memory if they fit, else built anew for each block."""
    skips = SkipCheck()
    timed = _both_resident(bench, plan, sides, skips)
    if timed is not None:
        return timed
    # The exception's traceback, which held the arms, is gone by now. Collect what is in cycles.
    gc.collect()
    bench.device.empty_cache()
    return _sample(bench, plan, _Apart(bench, sides, plan.warmup, skips))


def _both_resident(bench: Workbench, plan: Plan, sides: Sides, skips: SkipCheck) -> Timing | None:
    """Time both sides together in memory; return None if they do not fit."""
    try:
        with ExitStack() as stack:
            first, second = (stack.enter_context(side.built(bench)) for side in sides)
            return _sample(bench, plan, _Together(bench, (first, second), plan.warmup, skips))
    except Exception as error:
        if not bench.device.is_oom(error):
            raise
        traceback.clear_frames(error.__traceback__)  # a step may keep the exception that it raised
    return None


class _Together:
    """Keeps both sides in memory."""

    one_resident = False

    def __init__(
        self,
        bench: Workbench,
        residents: tuple[Resident, Resident],
        warmup: int,
        skips: SkipCheck,
    ) -> None:
        self._bench = bench
        self._residents = residents
        self.skips = skips
        for resident in residents:
            _warm_up(bench, resident, warmup, skips)
        self._retries = bench.device.allocation_retries()

    def arm(self, side: int) -> ArmName:
        return self._residents[side].arm.name

    def block(self, side: int, steps: int) -> Block:
        resident = self._residents[side]
        with resident.active():
            block = _timed(self._bench, resident, steps, self.skips)
        if self._bench.device.allocation_retries() > self._retries:
            raise torch.OutOfMemoryError("so nearly full that memory was given back and taken anew")
        return block


class _Apart:
    """Builds a side for each block, warms it up, and releases it."""

    one_resident = True

    def __init__(self, bench: Workbench, sides: Sides, warmup: int, skips: SkipCheck) -> None:
        self._bench = bench
        self._sides = sides
        self._warmup = warmup
        self.skips = skips

    def arm(self, side: int) -> ArmName:
        return self._sides[side].arm

    def block(self, side: int, steps: int) -> Block:
        with self._sides[side].built(self._bench) as resident:
            _warm_up(self._bench, resident, self._warmup, self.skips)
            with resident.active():
                return _timed(self._bench, resident, steps, self.skips)


def _warm_up(bench: Workbench, resident: Resident, steps: int, skips: SkipCheck) -> None:
    """Run `steps` steps, and more while a scaler still skips them."""
    resident.arm.pause_scaler_record()  # the record would slow the amp arm only
    with resident.active(), skips.watching():
        for index in range(steps + MOST_SETTLING_STEPS * bool(steps)):
            before = skips.look()
            bench.progress.at("warm-up", resident.arm.name, index + 1, steps)
            resident.step()
            if index + 1 >= steps and not skips.skipped_since(before):
                break
        bench.device.synchronize()


def _timed(bench: Workbench, resident: Resident, steps: int, skips: SkipCheck) -> Block:
    """Time one block. Its first step runs on cold caches, and is not timed."""
    device = bench.device
    resident.step()
    device.synchronize()
    before = skips.look()
    with resident.as_asked():
        start = device.now()
        for _ in range(steps):
            resident.step()
    device.synchronize()
    step_s = (device.now() - start) / steps
    return Block(step_s, skips.skipped_since(before))


def _sample(bench: Workbench, plan: Plan, lab: _Together | _Apart) -> Timing:
    began = bench.device.now()
    # Watch here, and not in each block's untimed step: patching a class slows Python for a while.
    with lab.skips.watching():
        steps, pair_s = _calibrate(bench, lab)
    plan.foresee(pair_s)
    order = random.Random(bench.seed)
    times: tuple[list[float], list[float]] = [], []
    ratios: list[float] = []
    retimed = 0
    while True:
        first = order.randrange(2)
        pair: dict[int, Block] = {}
        for side in (first, 1 - first):
            shown = plan.show(ratios)
            bench.progress.at("timing", lab.arm(side), len(ratios) + 1, None, shown)
            pair[side] = lab.block(side, steps)
        if any(block.skipped for block in pair.values()):
            retimed += 1  # a skipped step does less work
        else:
            for side, block in pair.items():
                times[side].append(block.step_s)
            ratios.append(pair[0].step_s / pair[1].step_s)
        elapsed = bench.device.now() - began
        reason = plan.stop(Pairs(ratios, times, elapsed))
        if reason is not None:
            return Timing(
                fp32_step_s=tuple(times[0]),
                amp_step_s=tuple(times[1]),
                block_steps=steps,
                stopped=reason,
                elapsed_s=elapsed,
                one_resident=lab.one_resident,
                skipping_pairs=retimed,
            )


def _calibrate(bench: Workbench, lab: _Together | _Apart) -> tuple[int, float]:
    """Return the steps per block, and the seconds that a pair of such blocks takes.

    A block of the faster arm has to be long compared with the timer and the synchronization.
    """
    bench.progress.at("calibration", None)
    steps = 1
    while True:
        began = bench.device.now()
        fastest = min(lab.block(side, steps).step_s for side in (0, 1))
        pair_s = bench.device.now() - began
        if fastest * steps >= LEAST_BLOCK_S or steps >= MOST_BLOCK_STEPS:
            return steps, pair_s
        wanted = LEAST_BLOCK_S / max(fastest, LEAST_BLOCK_S / MOST_BLOCK_STEPS)
        steps = min(MOST_BLOCK_STEPS, max(steps + 1, round(1.2 * wanted)))
