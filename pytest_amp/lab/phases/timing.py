"""Time pairs of blocks of steps: fp32 and amp in random order, synchronized after each block."""

from __future__ import annotations

import gc
import random
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.arm import ArmName, Setup
from pytest_amp.lab.machine.contention import cores, processors
from pytest_amp.lab.machine.untraced import is_profiled, is_traced, untraced
from pytest_amp.lab.scaling.skip_check import SkipCheck
from pytest_amp.lab.workbench import Resident, Turns, Workbench
from pytest_amp.observations import Disturbance, GpuState, Machine, Timing

__tracebackhide__ = unless_our_bug

T = TypeVar("T")
# A block's edges cost 2 ms: the counters, another arm's global state, and caches that went cold.
LEAST_BLOCK_S = 0.020
MOST_BLOCK_STEPS = 10_000
# How long nothing runs before a block that is timed alone.
PAUSE_S = 0.05
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


# Takes what was timed so far, and returns why to stop, or None to go on.
Stop = Callable[[Timing], "str | None"]


@dataclass(frozen=True)
class Plan:
    """How to sample.

    Attributes:
        warmup: the steps that each arm runs before anything is timed.
        stop: takes what was timed so far; returns why to stop, or None to go on.
        foresee: is told how many seconds a pair takes, before the first pair.
        show: formats the running estimate.
        order: seeds the order of the sides within pairs; by default the test's seed does.
        alone: whether to time one block of each side alone, behind a pause, when all pairs are.
    """

    warmup: int
    stop: Stop
    foresee: Callable[[float], None] = lambda _: None
    show: Callable[[], str] = lambda: ""
    order: int | None = None
    alone: bool = False


@dataclass(frozen=True)
class Block:
    """A timed block.

    Attributes:
        step_s: seconds per step.
        skipped: whether a GradScaler skipped any of the steps.
        taken: what other work took from it; None if nobody counts.
        gpu: the GPU's state at its end; None without NVML.
    """

    step_s: float
    skipped: bool
    taken: Disturbance | None = None
    gpu: GpuState | None = None


def run(bench: Workbench, plan: Plan, sides: Sides = ARMS) -> Timing:
    """Time both sides, together in memory if they fit, else built anew for each block.

    What traces Python, as coverage does, would slow both of them, and so is set aside.
    """
    traced = is_traced() or is_profiled()
    return replace(untraced(lambda: _run(bench, plan, sides)), traced=traced)


def _run(bench: Workbench, plan: Plan, sides: Sides) -> Timing:
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
            turns = Turns(bench)
            stack.callback(turns.end)
            lab = _Together(bench, (first, second), plan.warmup, skips, turns)
            return _sample(bench, plan, lab)
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
        turns: Turns,
    ) -> None:
        self._bench = bench
        self._residents = residents
        self._turns = turns
        self.skips = skips
        for resident in residents:
            _warm_up(bench, resident, warmup, skips)
        self._retries = bench.device.allocation_retries()

    def arm(self, side: int) -> ArmName:
        return self._residents[side].arm.name

    def block(self, side: int, steps: int) -> Block:
        resident = self._residents[side]
        with self._turns.of(resident):
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
    counted = device.counters()
    resident.step()
    device.synchronize()
    before = skips.look()
    with resident.as_asked():
        start = device.now()
        for _ in range(steps):
            resident.step()
    device.synchronize()
    step_s = (device.now() - start) / steps
    now = device.counters()
    taken = now.since(counted) if now is not None and counted is not None else None
    gpu = device.nvml.state_if_known() if device.nvml else None
    return Block(step_s, skips.skipped_since(before), taken, gpu)


def _sample(bench: Workbench, plan: Plan, lab: _Together | _Apart) -> Timing:
    began = bench.device.now()
    # Watch here, and not in each block's untimed step: patching a class slows Python for a while.
    with lab.skips.watching():
        steps, pair_s = _calibrate(bench, lab)
    plan.foresee(pair_s)
    order = random.Random(bench.seed if plan.order is None else plan.order)
    others = bench.device.nvml.other_processes() if bench.device.nvml else None
    machine = Machine(
        bench.device.type, cores(), processors(), torch.get_num_threads(), gpu_processes=others
    )
    kept: list[tuple[Block, Block]] = []
    retimed = 0
    timed = _record(lab, kept, steps, machine)
    while True:
        first = order.randrange(2)
        pair: dict[int, Block] = {}
        for side in (first, 1 - first):
            shown = plan.show()
            bench.progress.at("timing", lab.arm(side), len(kept) + 1, None, shown)
            pair[side] = lab.block(side, steps)
        if any(block.skipped for block in pair.values()):
            retimed += 1  # a skipped step does less work
        else:
            kept.append((pair[0], pair[1]))
        timed = replace(
            _record(lab, kept, steps, machine),
            elapsed_s=bench.device.now() - began,
            skipping_pairs=retimed,
        )
        reason = plan.stop(timed)
        if reason is not None:
            timed = replace(timed, stopped=reason)
            return _alone(bench, lab, steps, timed) if plan.alone else timed


def _alone(bench: Workbench, lab: _Together | _Apart, steps: int, timed: Timing) -> Timing:
    """Add one block of each side behind a pause, in which caches, clocks and memory settle.

    Sides that are built anew for each block are alone anyway.
    """
    if lab.one_resident:
        return timed
    found = []
    try:
        for side in (0, 1):
            bench.progress.at("timing alone", lab.arm(side))
            bench.device.pause(PAUSE_S)
            found.append(lab.block(side, steps))
    except Exception as error:
        if not bench.device.is_oom(error):
            raise
        return timed  # the pairs have been
    if any(block.skipped for block in found):
        return timed
    return replace(
        timed,
        alone_s=(found[0].step_s, found[1].step_s),
        alone_taken=_known(block.taken for block in found),
    )


def _record(
    lab: _Together | _Apart,
    pairs: Sequence[tuple[Block, Block]],
    steps: int,
    machine: Machine,
) -> Timing:
    """Return the record of the pairs of blocks that were timed so far."""
    first, second = (tuple(pair[side] for pair in pairs) for side in (0, 1))
    return Timing(
        fp32_step_s=tuple(block.step_s for block in first),
        amp_step_s=tuple(block.step_s for block in second),
        block_steps=steps,
        stopped="",
        elapsed_s=0.0,
        one_resident=lab.one_resident,
        machine=replace(
            machine,
            blocks=(
                _known(block.taken for block in first),
                _known(block.taken for block in second),
            ),
            gpu=(_known(block.gpu for block in first), _known(block.gpu for block in second)),
        ),
    )


def _known(states: Iterable[T | None]) -> tuple[T, ...]:
    """Return the states without those that nobody looked at, which are all or none."""
    return tuple(each for each in states if each is not None)


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
