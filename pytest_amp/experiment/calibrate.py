"""Measure the speed gate itself: identical steps, and steps that are slower by a known amount."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from pytest_amp.errors import AmpError, unless_our_bug
from pytest_amp.experiment.job import Job
from pytest_amp.experiment.run import laboratory, refuse_several_ranks
from pytest_amp.judge.calibration import Calibration
from pytest_amp.lab.arm import Arm, Step
from pytest_amp.lab.machine.device import choose
from pytest_amp.lab.phases import timing
from pytest_amp.lab.phases.planted import slower_by
from pytest_amp.observations import Timing
from pytest_amp.progress import Progress
from pytest_amp.settings.resolved import resolve

__tracebackhide__ = unless_our_bug

SIZES = (0.02, 0.05, 0.1, 0.2)


class Wanted(NamedTuple):
    """What to try.

    Attributes:
        trials: how many trials of unchanged steps, and of steps slower by each size.
        trial_s: the seconds that one trial may take.
        sizes: by how much steps are to be slower, ascending.
    """

    trials: int = 20
    trial_s: float = 3.0
    sizes: Sequence[float] = SIZES


def calibrate(
    job: Job,
    progress: Progress,
    wanted: Wanted,
    found: Calibration,
    tried: Callable[[int, float], None] = lambda *_: None,
) -> None:
    """Time the amp arm against itself, and against itself with planted work, again and again.

    Both sides are built anew for each trial, so that their memory lies elsewhere.

    Args:
        job: the test.
        progress: is told what runs.
        wanted: what to try.
        found: gets each trial.
        tried: is told each trial's number and size when it ends.

    Raises:
        AmpError: the test can't be timed.
        Exception: whatever the test's own code raises.
    """
    refuse_several_ranks()
    with laboratory(job, progress) as bench:
        if bench.untimed is not None:
            raise AmpError(f"there is nothing to calibrate, because {bench.untimed}")

        def timed(number: int, work_s: float, is_open: Callable[[Timing], bool]) -> Timing:
            def stop(timed: Timing) -> str | None:
                if timed.elapsed_s >= wanted.trial_s:
                    return "budget"
                return None if is_open(timed) else "decided"

            slower = timing.Side("amp", slower_by(work_s) if work_s else lambda setup: setup)
            plan = timing.Plan(job.settings.warmup, stop, order=number)
            found = timing.run(bench, plan, (timing.Side("amp"), slower))
            if not found.ratios:
                raise AmpError(
                    "the GradScaler skipped steps in every pair of blocks, and a skipped step has "
                    "no speed: give it an init_scale at which it skips none"
                )
            return found

        second_s = _work_for_a_second(timed, wanted)
        for number in range(1, wanted.trials + 1):
            for planted in (0.0, *wanted.sizes):
                trial = timed(number, planted * second_s, partial(found.is_open, planted))
                found.add(planted, trial)
                tried(number, planted)


def _work_for_a_second(
    timed: Callable[[int, float, Callable[[Timing], bool]], Timing], wanted: Wanted
) -> float:
    """Return the seconds of work by which a step takes twice as long, as work alone takes them.

    Beside a step, work takes longer than alone: its data have left the caches, or the device is
    busy. Two trials that do not count show how much.
    """
    if not wanted.sizes:
        return 0.0
    step_s = statistics.median(timed(0, 0.0, lambda _: True).fp32_step_s)
    largest = wanted.sizes[-1]
    ratios = timed(0, largest * step_s, lambda _: True).ratios
    slower = 1 / statistics.median(ratios) - 1
    return step_s * min(2.0, max(0.5, largest / slower)) if slower > 0 else step_s


def own_job() -> Job:
    """Return a small training step, to calibrate on where no test is named."""
    settings = resolve([])
    return Job("a small step of its own", _own_step, choose(settings.device), settings)


def _own_step(arm: Arm) -> Step:
    """Build two linear layers, which take the wider part of a millisecond on a CPU."""
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 16)).to(arm.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    inputs = torch.randn(256, 256, device=arm.device)

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with arm.autocast():
            loss: torch.Tensor = model(inputs).square().mean()
        arm.scaler.scale(loss).backward()
        arm.scaler.step(optimizer)
        arm.scaler.update()
        return loss

    return step
