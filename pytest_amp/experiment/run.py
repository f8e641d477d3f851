"""Run one test's experiment, phase by phase, and judge what was seen."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

from pytest_amp import units
from pytest_amp.codes import GATES
from pytest_amp.errors import AmpError, unless_our_bug
from pytest_amp.experiment import forecasting, one_arm
from pytest_amp.experiment.confirm import (
    confirmed,
    look_for_idling,
    try_fewer_threads,
    try_remedies,
)
from pytest_amp.experiment.job import Job, arms_of, blank_report, environment_of, phases_of
from pytest_amp.experiment.places import located
from pytest_amp.experiment.plan import limits_of, plan_of
from pytest_amp.judge import (
    anchor,
    contention,
    dtype_map,
    gates,
    kernels,
    loss,
    parity,
    seeds,
    speed,
    training,
)
from pytest_amp.judge.case import Case, Limits
from pytest_amp.lab.arm import NoFloat16
from pytest_amp.lab.intact import intact
from pytest_amp.lab.machine.abilities import abilities
from pytest_amp.lab.machine.device import Device, has_accelerator, world_size
from pytest_amp.lab.machine.garbage import older_objects_set_aside
from pytest_amp.lab.machine.lock import turn
from pytest_amp.lab.machine.torch_globals import is_tf32_on
from pytest_amp.lab.machine.untraced import is_profiled
from pytest_amp.lab.phases import drill, timing
from pytest_amp.lab.phases import parity as parity_run
from pytest_amp.lab.phases.accumulation_drill import accumulated
from pytest_amp.lab.phases.inspection import inspect
from pytest_amp.lab.phases.overflow_drill import overflow
from pytest_amp.lab.phases.resume_drill import resume
from pytest_amp.lab.phases.scale_drill import two_scales
from pytest_amp.lab.policy import CUDAS_DTYPE, cuda_rules
from pytest_amp.lab.scaling.step_watch import Replay
from pytest_amp.lab.watch.tensors import dtype_name
from pytest_amp.lab.workbench import Workbench
from pytest_amp.observations import Losses, Observations, ParityRun, SeedRun, Timing
from pytest_amp.progress import Progress
from pytest_amp.recipes import Recipes
from pytest_amp.results.explanation import in_order
from pytest_amp.results.report import AmpReport
from pytest_amp.rules import registry
from pytest_amp.settings.precision import EMULATED, Abilities, effective
from pytest_amp.settings.resolved import Settings

__tracebackhide__ = unless_our_bug


# A run in float64 gets a second, or so many times what a run in float32 takes; some GPUs compute it
# at a thirty-second of the speed.
ANCHOR_S, ANCHOR_TIMES = 1.0, 10
_SCALER_OFF = (
    "the GradScaler is off, because {dtype}, which is the default on {device}, needs none: the "
    "drills did not run, and AMP203 to AMP211 did not speak; where the training runs in float16, "
    "as it does on CUDA by default, ask them with --amp-dtype=float16"
)


_NO_FLOAT16 = (
    "frameworks that are told the precision have no float16 on a CPU, so the amp arm ran in "
    "bfloat16, by CUDA's lists; what the GradScaler does has to be asked on a GPU"
)


def run(job: Job, progress: Progress) -> AmpReport:
    """Measure both arms, judge them, and return the report.

    Raises:
        AmpError: the test can't be measured as it is written.
        Exception: whatever the test's own code raises.
    """
    try:
        return _run(job, progress)
    except NoFloat16:
        progress.begin_anew()
        notes = (*job.notes, _NO_FLOAT16)
        return _run(replace(job, default_dtype="bfloat16", notes=notes), progress)


def _run(job: Job, progress: Progress) -> AmpReport:
    if not job.settings.static:
        refuse_several_ranks()
    with laboratory(job, progress) as bench:
        left_to_us = job.default_dtype is None and job.settings.leaves_the_dtype_to_the_device
        bench.without_float16 = bench.policy == "cuda" and left_to_us
        report = judged(bench, job)
    limits = limits_of(job.settings, job.device.names())
    own = [
        GATES[name]
        for name in GATES
        if job.settings.sources[name] in ("marker", "override") and job.settings.preset is None
    ]
    return replace(report, gates=(*report.gates, *training.untrained(limits, own)))


def judged(bench: Workbench, job: Job) -> AmpReport:
    """Measure both arms on a workbench that is set up, judge them, and return the report.

    Raises:
        AmpError: the test can't be measured as it is written.
        Exception: whatever the test's own code raises.
    """
    began = time.perf_counter()  # from here on it has the device to itself
    settings, blank = job.settings, blank_report(job)
    limits = limits_of(settings, job.device.names())
    environment = environment_of(bench)
    seen = _observe(bench, settings, limits)
    gated, mapped = gates.judge(seen, limits), None
    if job.snapshot is not None:
        mapped, gate = dtype_map.judge(job.snapshot, seen)
        gated = (*gated, gate)
    case = Case(seen, {gate.name: gate for gate in gated}, limits)
    if seen.timing is not None:
        try_remedies(bench, settings, case)
        try_fewer_threads(bench, settings, case)
        case = look_for_idling(bench, settings, case)
    attainable = forecasting.attainable(bench, seen)
    forecasts = forecasting.elsewhere(bench, seen, settings.forecast)
    case = located(bench, case)
    found = registry.findings(case, settings.select, settings.ignore)
    found = confirmed(bench, settings, case, found)
    named = bench.recipes.named
    gated = tuple(replace(each, reason=named(each.reason)) for each in gated)
    found = tuple(replace(each, message=named(each.message)) for each in found)
    loss_gate = case.gates["loss_diff"]
    report = replace(
        blank,
        verdict=gates.verdict_of(gated, found),
        duration_s=time.perf_counter() - began,
        environment=environment,
        gates=gated,
        arms=arms_of(seen),
        speedup=speed.estimate(seen.timing, limits.error_rate),
        loss_diff=loss_gate.value,
        noise_floor=max(
            parity.noise_floor(seen.fp32.losses, seen.floor, key) for key in seen.fp32.losses
        ),
        coverage=gates.coverage(seen),
        findings=found,
        notes=tuple(map(named, bench.notes)),
        phases_s=phases_of(bench.progress),
        dtype_map=mapped,
        attainable=attainable,
        forecasts=forecasts,
        contention=contention.of(seen.timing),
        anchor=anchor.all_errors(seen),
        seeds=seeds.summed_up(seen),
    )
    suppressed = (each for each in found if each.suppressed is not None)
    return replace(report, findings=(*in_order(report), *suppressed))


@contextmanager
def laboratory(job: Job, progress: Progress) -> Iterator[Workbench]:
    """Set up a job's workbench, and leave no global state behind.

    Unless the run is static, it waits until it has the device to itself.
    """
    settings, device = job.settings, job.device
    able = abilities(device.torch)
    try:
        policy = settings.policy_on(device.type, has_accelerator(), job.for_cuda)
    except ValueError as error:
        raise AmpError(str(error)) from None
    default = CUDAS_DTYPE if policy == "cuda" else dtype_name(device.default_dtype())
    recipes, notes = _possible(settings.recipes(job.default_dtype or default), able, device)
    bench = Workbench(job.setup, device, recipes, settings.seed, progress, job.fixture)
    bench.policy, bench.assumed = policy, policy == "cuda" and settings.policy == "auto"
    bench.notes.extend((*job.notes, *notes))
    bench.suggest = job.suggest
    bench.scaling = {
        "init_scale": settings.init_scale,
        "growth_interval": settings.growth_interval,
    }
    if EMULATED in (able.float8.get(each.float8 or "") for each in recipes):
        bench.untimed = "float8 is emulated here, so that its speed would say nothing"
    with (
        nullcontext() if settings.static else turn(device, progress),
        device.activated(),
        intact(bench.globals),
        older_objects_set_aside(device),
        cuda_rules() if policy == "cuda" else nullcontext(),
    ):
        yield bench


def _possible(asked: Recipes, able: Abilities, device: Device) -> tuple[Recipes, list[str]]:
    """Return the recipes as they run on a device, and notes on what is different from the name.

    Raises:
        AmpError: a recipe can't run here, and nothing computes the same.
    """
    found = [effective(recipe, able) for recipe in asked]
    notes = []
    for recipe, each in zip(asked, found, strict=True):
        if replace(each.recipe, matmul=recipe.matmul) != recipe:
            raise AmpError(f"{recipe} can't run on {device}: {each.reason}; choose another recipe")
        if each.reason is not None:
            notes.append(f"{recipe}: {each.reason}")
    runs = Recipes(*(each.recipe for each in found))
    if runs.fp32 == runs.amp:
        notes.append(f"both arms run in {runs.amp}: they differ by chance alone")
    if is_tf32_on() and "tf32" not in (asked.fp32.matmul, asked.amp.matmul):
        notes.append(
            "float32 products may run in TF32 in this process, which neither recipe has, so the "
            "arms ran without it; to measure with it, add +tf32, as in --amp-reference=tf32"
        )
    return runs, list(dict.fromkeys(notes))


def refuse_several_ranks() -> None:
    """Raise an AmpError where the ranks would wait for one another forever."""
    ranks = world_size()
    if ranks > 1:
        raise AmpError(
            f"timed runs on several ranks (there are {ranks}) are not supported yet: each rank "
            "would time a different number of steps, and wait for the others forever; run on one "
            "rank, or with --amp-static, which runs the same number of steps on all of them"
        )


def _observe(bench: Workbench, settings: Settings, limits: Limits) -> Observations:
    """Run the phases in order, and return what they saw."""
    seen = _both_arms(bench, settings, limits)
    bench.progress.why_slow = kernels.without_fast_ones(seen)
    if bench.progress.why_slow is not None:
        bench.notes.append(bench.progress.why_slow)
    if seen.amp.scaler.live:
        seen = _drilled(bench, settings, seen)
    elif (
        seen.amp.scaler.scale_calls_when_off
        and settings.leaves_the_dtype_to_the_device
        and bench.policy == "native"  # else a note says why it is off
    ):
        bench.notes.append(_SCALER_OFF.format(device=bench.device.type, dtype=seen.dtype))
    seen = _resumed(bench, settings, _added_up(bench, settings, seen))
    _require_the_device(bench, settings, seen.amp.start.devices)
    if settings.static or bench.untimed is not None:
        return replace(seen, untimed=bench.untimed)
    return replace(seen, timing=_timed(bench, settings, limits))


def _both_arms(bench: Workbench, settings: Settings, limits: Limits) -> Observations:
    """Run the parity steps of each arm, inspect each, and measure the noise floor.

    Each of these builds the arm anew.
    """
    fp32, amp, skipped = _parity(bench, settings.steps)
    fp32, amp, numerics = inspect(bench, fp32, amp, settings.steps)
    seen = Observations(
        device=bench.device.name(),
        recipes=bench.recipes,
        dtype=dtype_name(bench.dtype),
        native_support=bench.native_support,
        device_type=bench.device.type,
        policy=bench.policy,
        numerics=numerics,
        fp32=fp32,
        amp=amp,
        floor=parity_run.floor(bench, settings.steps, skipped, loss.draws_differ(fp32, amp)),
        seed=bench.seed,
        seeds=tuple(_further_seeds(bench, settings, fp32)),
    )
    if seen.seeds and (note := seeds.alike(seen)):
        bench.notes.append(note)
    if loss.rests_on_loss_atol(seen, limits):
        seen = replace(seen, rounded=parity_run.rounded(bench, settings.steps, skipped))
    if loss.wants_anchor(seen, limits):
        seen = replace(seen, anchor=_anchored(bench, seen, settings.steps, skipped))
        bench.notes.extend(loss.errors_behind_a_pass(seen, limits))
    return seen


def _parity(bench: Workbench, steps: int) -> tuple[ParityRun, ParityRun, Replay | None]:
    """Run both arms from one seed: fp32's run, amp's, and the skips that fp32 repeated."""
    with one_arm.explained(bench, "amp"):
        amp, skipped = parity_run.run(bench, "amp", steps)
    with one_arm.explained(bench, "fp32"):
        fp32, _ = parity_run.run(bench, "fp32", steps, skipped)
    if set(fp32.losses) != set(amp.losses):
        raise AmpError(
            f"the fp32 arm's step returned the losses {sorted(fp32.losses)}, the amp arm's "
            f"{sorted(amp.losses)}: both must return the same keys"
        )
    if lost := parity.overflowed_while_looking(amp):
        amp = replace(amp, losses_at_last_scale=parity_run.at_last_scale(bench, amp, lost))
    return fp32, amp, skipped


def _further_seeds(bench: Workbench, settings: Settings, first: ParityRun) -> Iterator[SeedRun]:
    """Run both arms from each further seed; their losses have the names that the first's have."""
    for seed in range(bench.seed + 1, bench.seed + settings.seeds):
        with bench.seeded(seed % 2**32):
            fp32, amp, _ = _parity(bench, settings.steps)
        if set(fp32.losses) != set(first.losses):
            raise AmpError(
                f"with seed {seed % 2**32} the step returned the losses {sorted(fp32.losses)}, and "
                f"{sorted(first.losses)} with seed {bench.seed}: all must return the same keys"
            )
        yield SeedRun(seed % 2**32, fp32, amp)


def _anchored(
    bench: Workbench, seen: Observations, steps: int, skipped: Replay | None
) -> Losses | None:
    """Run fp32 in float64; leave a note where that can't be had."""
    if world_size() > 1:
        bench.notes.append("no errors against float64, because ranks might not run as many steps")
        return None
    why: str | None
    budget_s = max(ANCHOR_S, ANCHOR_TIMES * seen.fp32.fastest_step_s * steps)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            losses = parity_run.anchor(bench, steps, skipped, budget_s)
    except Exception as error:  # noqa: BLE001 - the step runs in float32, so it is not at fault
        what = (str(error).splitlines() or [""])[0]
        bench.device.empty_cache()
        why = f"the step does not run in it ({type(error).__name__}: {what})"
    else:
        why = anchor.unusable(losses, seen.fp32.losses)
    if why is None:
        return losses
    bench.notes.append(f"no errors against float64: {why}")
    return None


def _drilled(bench: Workbench, settings: Settings, seen: Observations) -> Observations:
    """Provoke an overflow, compare the gradients at two loss scales, and add what was seen."""
    scaler, steps, note = seen.amp.scaler, settings.steps, bench.notes.append
    begin = max(scaler.first_moves.values(), default=0)  # by then its schedulers exist
    return replace(
        seen,
        overflow=drill.attempted("overflow drill", lambda: overflow(bench, steps, begin), note),
        two_scales=drill.attempted(
            "scale drill", lambda: two_scales(bench, steps, len(scaler.optimizers)), note
        ),
    )


def _added_up(bench: Workbench, settings: Settings, seen: Observations) -> Observations:
    """Look how micro-batches add up, if there are several to one step."""
    if seen.amp.scaler.most_passes < 2 and seen.fp32.scaler.most_passes < 2:
        return seen
    scale = seen.amp.scales[-1] if seen.amp.scales else None
    found = drill.attempted(
        "accumulation drill",
        lambda: accumulated(bench, settings.steps, scale),
        bench.notes.append,
    )
    return replace(seen, accumulated=found)


def _resumed(bench: Workbench, settings: Settings, seen: Observations) -> Observations:
    """Resume from the user's checkpoint, if the setup says what it holds."""
    if seen.amp.checkpoint is None:
        return seen
    steps, note = settings.steps, bench.notes.append
    found = drill.attempted("resume drill", lambda: resume(bench, steps), note)
    return replace(seen, resume=found)


def _require_the_device(bench: Workbench, settings: Settings, trained_on: Sequence[str]) -> None:
    """Leave a note if parameters are not on the measured device; under ``--amp-strict`` raise."""
    if trained_on and not any(_is(bench.device, name) for name in trained_on):
        note = (
            f"the trained parameters are on {', '.join(trained_on)}, and {bench.device} was "
            "measured: build on arm.device, or choose another with --amp-device"
        )
        if "device" in settings.strict:
            raise AmpError(note)
        bench.notes.append(note)
    elif sum(name.startswith(bench.device.type) for name in trained_on) > 1:
        bench.notes.append(
            f"the trained parameters are on {', '.join(trained_on)}: only {bench.device} was "
            "waited for, and only its memory was counted"
        )


def _timed(bench: Workbench, settings: Settings, limits: Limits) -> Timing:
    """Time the arms against each other, and leave notes on how that went."""
    refuse_several_ranks()  # setup may have joined a process group
    bench.progress.at("timing", None)
    timed = timing.run(bench, plan_of(bench, settings, limits))
    if timed.skipping_pairs:
        bench.notes.append(
            f"{units.plural(timed.skipping_pairs, 'pair')} of blocks left out, because the "
            "GradScaler skipped steps in them"
        )
    if timed.one_resident:
        bench.notes.append(
            "both arms did not fit in memory together: each was rebuilt for every timed block"
        )
    if is_profiled():
        bench.notes.append(
            "a profile function, such as cProfile's, was called for each function of Python: it "
            "slows the host's part of a step in both arms, and so understates what AMP gains or "
            "loses; measure without it"
        )
    if note := speed.otherwise_alone(timed):
        bench.notes.append(note)
    bench.progress.at("done", None)
    return timed


def _is(device: Device, name: str) -> bool:
    kind, _, index = name.partition(":")
    ours = device.torch.index
    return kind == device.type and (not index or ours is None or int(index) == ours)
