"""What the laboratory's tests share: a simulated clock, small steps, and runs in one line."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from pytest_amp.experiment import run as experiment
from pytest_amp.experiment.job import Job, failed
from pytest_amp.lab.arm import Arm, Setup
from pytest_amp.lab.machine.device import Device
from pytest_amp.lab.watch.tensors import dtype_name
from pytest_amp.lab.workbench import Resident, Workbench
from pytest_amp.progress import Progress
from pytest_amp.recipes import Recipes
from pytest_amp.results.report import AmpReport
from pytest_amp.settings.resolved import resolve

CPU = torch.device("cpu")
TORCH = tuple(map(int, torch.__version__.split(".")[:2]))


class SimulatedDevice(Device):
    """A CPU whose clock moves only when a step moves it."""

    nvml = None

    def __init__(self) -> None:
        super().__init__(CPU)
        self.time_s = 0.0
        self.events: list[str] = []

    def now(self) -> float:
        self.events.append("now")
        return self.time_s

    def synchronize(self) -> None:
        self.events.append("synchronize")

    def native_support(self, dtype: torch.dtype) -> bool:
        return True

    def steps(
        self, fp32_s: float, amp_s: float, noise: float = 0.0, seed: int = 0
    ) -> Callable[[Arm], Callable[[], float]]:
        """Return a setup whose steps only move the clock, by these times with log-normal noise."""
        draw = random.Random(seed)

        def setup(arm: Arm) -> Callable[[], float]:
            duration = amp_s if arm.enabled else fp32_s

            def step() -> float:
                self.events.append(arm.name)
                self.time_s += duration * draw.lognormvariate(0, noise)
                return 1.0

            return step

        return setup


def workbench(
    setup: Setup, dtype: torch.dtype = torch.bfloat16, device: Device | None = None, seed: int = 0
) -> Workbench:
    return Workbench(
        setup, device or Device(CPU), Recipes.autocast(dtype_name(dtype)), seed, Progress()
    )


def measure(setup: Setup, device: Device | None = None, **given: Any) -> AmpReport:
    """Return the report of one experiment on the CPU, by its own rules of autocast.

    It is static unless `static=False` is given.
    """
    return experiment.run(_job(setup, device, given), Progress())


def attempt(setup: Setup, device: Device | None = None, **given: Any) -> AmpReport:
    """Return the report of one experiment, even if the step raises and a rule explains why."""
    job, progress = _job(setup, device, given), Progress()
    try:
        return experiment.run(job, progress)
    except Exception as error:
        report = failed(job, progress, error)
        if not report.findings:
            raise
        return report


def _job(setup: Setup, device: Device | None, given: Mapping[str, Any]) -> Job:
    options = resolve([("cli", {"static": True, "policy": "native", "steps": 8, **given})])
    return Job("test_step", setup, device or Device(CPU), options)


def codes(report: AmpReport) -> list[str]:
    return [finding.code for finding in report.findings]


def train(arm: Arm, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Any]) -> Any:
    """Return a plain training step: forward under autocast, backward, scaler."""

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with arm.autocast():
            loss = loss_of()
        arm.scaler.scale(loss).backward()
        arm.scaler.step(optimizer)
        arm.scaler.update()
        return loss

    return step


@contextmanager
def active(bench: Workbench, name: Any) -> Iterator[Resident]:
    """Build an arm and keep it active inside."""
    with bench.built(name) as resident, resident.active():
        yield resident
