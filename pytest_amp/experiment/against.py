"""Measure two models side by side, under one recipe."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from pytest_amp.errors import unless_our_bug
from pytest_amp.experiment.job import Job, arms_of, blank_report, environment_of, phases_of
from pytest_amp.experiment.plan import limits_of, plan_of
from pytest_amp.experiment.run import laboratory, refuse_several_ranks
from pytest_amp.judge import contention, gates, speed
from pytest_amp.lab.arm import Arm, Setup, Step
from pytest_amp.lab.phases import parity as parity_run
from pytest_amp.lab.phases import timing
from pytest_amp.lab.watch.tensors import dtype_name
from pytest_amp.observations import Floor, Observations, Start
from pytest_amp.progress import Progress
from pytest_amp.recipes import renamed
from pytest_amp.results.report import AmpReport

__tracebackhide__ = unless_our_bug

# What can be asked of two models; their losses need not agree.
_ASKED = ("speedup", "memory_reduction")
OURS = "this model"


def run(job: Job, progress: Progress, other: Setup, name: str) -> AmpReport:
    """Run both models' steps, time them in pairs, judge speed and memory, and report it.

    Args:
        job: the test, whose setup builds the one model.
        progress: is told what runs.
        other: builds the other model, which takes the reference's place.
        name: what to call that.

    Raises:
        AmpError: the test can't be measured as it is written.
        Exception: whatever the test's own code raises.
    """
    if not job.settings.static:
        refuse_several_ranks()
    ours = job.setup

    def setup(arm: Arm) -> Step:
        return ours(arm) if arm.name == "amp" else other(arm)

    recipe = job.settings.recipes(dtype_name(job.device.default_dtype())).amp
    settings = job.settings._replace(dtype=None, reference=recipe, candidate=recipe)
    limits, steps = limits_of(settings, job.device.names()), settings.steps
    with laboratory(replace(job, setup=setup, settings=settings), progress) as bench:
        bench.notes.clear()  # that both arms have one recipe is the point
        began, environment = time.perf_counter(), environment_of(bench)
        amp, _ = parity_run.run(bench, "amp", steps)
        theirs, _ = parity_run.run(bench, "fp32", steps)
        seen = Observations(
            device=bench.device.name(),
            device_type=bench.device.type,
            recipes=bench.recipes,
            dtype=dtype_name(bench.dtype),
            native_support=bench.native_support,
            fp32=theirs,
            amp=amp,
            floor=Floor(theirs.losses, Start(), steps, other_stream=False),
            untimed=bench.untimed,
        )
        if not settings.static and bench.untimed is None:
            progress.at("timing", None)
            plan = replace(plan_of(bench, settings, limits), alone=False)
            seen = replace(seen, timing=timing.run(bench, plan))
        progress.at("done", None)
    models = {"fp32": name, "amp": OURS}
    gated = tuple(
        replace(each, reason=_told_of(models, each.reason))
        for each in gates.judge(seen, limits)
        if each.name in _ASKED
    )
    arms = {key: replace(arm, model=models[key]) for key, arm in arms_of(seen).items()}
    return replace(
        blank_report(job),
        verdict=gates.verdict_of(gated, ()),
        duration_s=time.perf_counter() - began,
        environment=environment,
        gates=gated,
        arms=arms,
        speedup=speed.estimate(seen.timing, limits.error_rate),
        notes=tuple(bench.notes),
        phases_s=phases_of(progress),
        contention=contention.of(seen.timing),
    )


def _told_of(models: Mapping[str, str], text: str) -> str:
    """Return a text with the models' names in place of the arms'."""
    for arm, model in models.items():
        text = text.replace(f"the {arm} arm", model)
    return renamed(text, models)
