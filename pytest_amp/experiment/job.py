"""Describe what is to be measured, and fill in the parts of its report that need no judgement."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from pytest_amp.errors import add_note
from pytest_amp.judge import dtype_map
from pytest_amp.lab.arm import Setup, Suggest, first_of
from pytest_amp.lab.machine.device import Device, unseen
from pytest_amp.lab.scaling.scaler import FixtureScaler, raised_by_scaler
from pytest_amp.lab.watch.source import location_of
from pytest_amp.lab.watch.tensors import dtype_name
from pytest_amp.lab.workbench import Workbench
from pytest_amp.observations import Observations, ParityRun
from pytest_amp.progress import Progress
from pytest_amp.provenance import now
from pytest_amp.recipes import Recipe
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import PHASES, ArmRun, Environment, Failure, Finding
from pytest_amp.rules import registry
from pytest_amp.rules.base import NeverCalled, Raised, RaisedAlone
from pytest_amp.settings.resolved import Settings

_PHASES = {
    "parity": "parity",
    "noise floor": "parity",
    "float64": "parity",
    "overflow drill": "inspection",
    "scale drill": "inspection",
    "accumulation drill": "inspection",
    "resume drill": "inspection",
    "inspection": "inspection",
    "locating": "inspection",
    "confirming": "inspection",
    "profiling": "inspection",
    "warm-up": "timing",
    "calibration": "timing",
    "timing": "timing",
    "timing alone": "timing",
    "ceilings": "timing",
    "training": "training",
    "evaluation": "training",
}


@dataclass(frozen=True)
class Job:
    """What is to be measured for one test, and where.

    Attributes:
        nodeid: the test, as pytest names it.
        setup: the user's function that builds an arm.
        device: the device to measure on.
        settings: the test's settings.
        fixture: the test's amp_scaler, if it has one.
        attempt: 1, or more if the test is run again.
        worker: the xdist worker, if there is one.
        rank: the process's rank under torch.distributed, if there is one.
        notes: notes that the report starts with.
        snapshot: the stored dtype map to compare with, if there is one.
        suggest: chooses one of the values that a setup offers by ``arm.suggest``.
        default_dtype: the dtype to cast to if nobody chose one; None for the device's own.
        for_cuda: whether the test asks for a CUDA device, with the fixture of that name.
    """

    nodeid: str
    setup: Setup
    device: Device
    settings: Settings
    fixture: FixtureScaler | None = None
    attempt: int = 1
    worker: str | None = None
    rank: int | None = None
    notes: tuple[str, ...] = ()
    snapshot: dtype_map.StoredMap | None = None
    suggest: Suggest = first_of
    for_cuda: bool = False
    default_dtype: str | None = None


def failed(job: Job, progress: Progress, error: BaseException) -> AmpReport:
    """Return the report of a test whose experiment was ended by an exception.

    A rule's finding about the exception is also attached to it as a note.
    """
    progress.count()
    failure = Failure(progress.arm, progress.phase, progress.step, type(error).__name__, str(error))
    found: tuple[Finding, ...] = ()
    raised: object = progress.raised_alone
    if raised_by_scaler(error):
        raised = Raised(str(error), progress.led_to_it or location_of(error))
    if isinstance(raised, Raised | RaisedAlone):
        found = registry.findings(raised, job.settings.select, job.settings.ignore)
    for finding in found:
        add_note(error, str(finding))
    return replace(
        blank_report(job),
        verdict="error",
        duration_s=time.perf_counter() - progress.began,
        error=failure,
        findings=found,
        phases_s=phases_of(progress),
    )


def nothing_measured(job: Job) -> AmpReport:
    """Return the failed report of a test that never called amp_benchmark, whatever is ignored."""
    found = registry.findings(NeverCalled(), ("AMP001",), {})
    return replace(blank_report(job), verdict="fail", findings=found)


def blank_report(job: Job) -> AmpReport:
    """Return a report that says which test it is of, and holds no figures yet."""
    return AmpReport(
        nodeid=job.nodeid,
        verdict="error",
        started=now(),
        attempt=job.attempt,
        worker=job.worker,
        rank=job.rank,
        settings=job.settings.described(),
    )


def environment_of(bench: Workbench) -> Environment:
    """Return where the test is measured."""
    device, versions = bench.device, bench.device.versions()
    return Environment(
        device=device.name(),
        device_type=device.type,
        torch=torch.__version__,
        cuda=versions["cuda"],
        cudnn=versions["cudnn"],
        driver=versions["driver"],
        dtype=dtype_name(bench.dtype),
        native_support=bench.native_support,
        flags=bench.flags(),
        unseen=unseen(),
    )


def arms_of(seen: Observations) -> dict[str, ArmRun]:
    """Return what each arm did, by its name, as the report has it."""

    def arm(run: ParityRun, times: tuple[float, ...], recipe: Recipe) -> ArmRun:
        return ArmRun(
            recipe=str(recipe),
            step_times_s=times,
            losses_by_key=run.losses,
            peak_bytes=run.peak_bytes,
            reserved_bytes=run.reserved_bytes,
            flops_by_dtype=run.operators.flops_by_dtype if run.operators else {},
            operators=dtype_map.calls(run.operators),
            scales=run.scales,
            skipped_steps=run.skipped_steps,
            held_bytes=run.held,
            parameters=sum(each.size for each in run.parameters),
        )

    timed = seen.timing
    return {
        "fp32": arm(seen.fp32, timed.fp32_step_s if timed else (), seen.recipes.fp32),
        "amp": arm(seen.amp, timed.amp_step_s if timed else (), seen.recipes.amp),
    }


def phases_of(progress: Progress) -> dict[str, float]:
    """Return the seconds that each of the report's phases took."""
    totals = dict.fromkeys(PHASES, 0.0)
    for phase, seconds in progress.seconds.items():
        if (part := part_of(phase)) is not None:
            totals[part] += seconds
    return totals


def part_of(phase: str) -> str | None:
    """Return which of the report's phases a phase of the progress belongs to; None if to none."""
    return _PHASES.get(phase)
