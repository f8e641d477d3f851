"""Run a whole training in both arms, on top of the experiment of its first steps."""

from __future__ import annotations

import time
from dataclasses import replace

from pytest_amp.errors import AmpError, unless_our_bug
from pytest_amp.experiment.job import Job, phases_of
from pytest_amp.experiment.plan import limits_of
from pytest_amp.experiment.run import judged, laboratory, refuse_several_ranks
from pytest_amp.judge import gates
from pytest_amp.judge import training as judge
from pytest_amp.lab.phases import training as phase
from pytest_amp.progress import Progress
from pytest_amp.results.report import AmpReport

__tracebackhide__ = unless_our_bug


def run(job: Job, progress: Progress) -> AmpReport:
    """Measure a training's steps as ever, train both arms to the end, judge all, and report it.

    Args:
        job: the test, whose setup returns `Steps`.
        progress: is told what runs.

    Raises:
        AmpError: the test can't be measured as it is written.
        Exception: whatever the test's own code raises.
    """
    refuse_several_ranks()
    limits = limits_of(job.settings, job.device.names())
    with laboratory(job, progress) as bench:
        report = judged(bench, job)
        began = time.perf_counter()
        amp, skipped = phase.train(bench, "amp")
        fp32, _ = phase.train(bench, "fp32", skipped)
        if set(fp32[-1].val) != set(amp[-1].val):
            raise AmpError(
                f"evaluate() returned {sorted(fp32[-1].val)} in the fp32 arm, and "
                f"{sorted(amp[-1].val)} in the amp arm: it must return the same keys"
            )
        trained = judge.judge(
            fp32, amp, limits, lambda: phase.train(bench, "fp32", skipped, nudged=True)[0]
        )
        progress.at("done", None)
        named = bench.recipes.named
    trained = tuple(replace(each, reason=named(each.reason)) for each in trained)
    every = (
        *report.gates,
        *(gates.for_other_devices(each, limits, job.device.type) for each in trained),
    )
    return replace(
        report,
        gates=every,
        verdict=gates.verdict_of(every, report.findings),
        duration_s=report.duration_s + time.perf_counter() - began,
        phases_s=phases_of(progress),
        training={"fp32": fp32, "amp": amp},
    )
