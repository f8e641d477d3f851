"""Measure a test with its settings, and keep the report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_amp.plugin import collection, options
from pytest_amp.provenance import rank

if TYPE_CHECKING:
    from pytest_amp.experiment.job import Job
    from pytest_amp.lab.arm import Arm
    from pytest_amp.lab.machine.device import Device
    from pytest_amp.lab.scaling.scaler import FixtureScaler
    from pytest_amp.lab.training import Training
    from pytest_amp.plugin.models_report import ModelsReport
    from pytest_amp.plugin.training_report import TrainingReport
    from pytest_amp.progress import Progress
    from pytest_amp.results.report import AmpReport
    from pytest_amp.settings.resolved import Settings


REPORT = pytest.StashKey["AmpReport"]()
RUNNER = pytest.StashKey[Callable[..., "AmpReport"]]()  # runs instead of the experiment
WATCHER = pytest.StashKey[Callable[["Progress"], None]]()  # is shown the progress instead
_SCALER = pytest.StashKey["FixtureScaler"]()
_DEVICE = pytest.StashKey["Device"]()


class Benchmark:
    """The value of the `amp_benchmark` fixture. It measures once per test."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._called = False

    def __call__(
        self, setup: Callable[[Arm], Callable[[], Any]], *, check: bool = True
    ) -> AmpReport:
        """Measure both arms, judge them, assert the gates, and return the report.

        Args:
            setup: builds an arm; it is called for each arm, with the same seed. It returns the
                step: a function without arguments that runs one optimization step and returns its
                loss.
            check: whether to assert the gates; if not, call the report's `check()` yourself.

        Raises:
            AmpRegression: a gate failed, or a finding of severity error is not suppressed.
            AmpInconclusive: under ``--amp-strict``, a gate has no answer.
            AmpError: the test can't be measured as it is written.
        """
        __tracebackhide__ = True
        report = self._measured(setup)
        if check:
            report.check()
        return report

    def train(self, setup: Callable[[Arm], Training], *, check: bool = True) -> TrainingReport:
        """Train both arms from the first batch to the last epoch, judge them, assert the gates.

        The first steps are measured and looked at as those of any test. Then each arm is built anew
        and trained to the end.

        Args:
            setup: builds an arm; it is called for each arm, with the same seed. It returns a
                `pytest_amp.Training`.
            check: whether to assert the gates; if not, call the report's `check()` yourself.

        Raises:
            AmpRegression: a gate failed, or a finding of severity error is not suppressed.
            AmpInconclusive: under ``--amp-strict``, a gate has no answer.
            AmpError: the test can't be measured as it is written.
        """
        __tracebackhide__ = True
        from pytest_amp.experiment import training
        from pytest_amp.lab.training import as_steps
        from pytest_amp.plugin.training_report import TrainingReport

        self._check(setup)
        report = TrainingReport.of(self._measured(as_steps(setup), training.run))
        if check:
            report.check()
        return report

    def against(
        self,
        setup: Callable[[Arm], Callable[[], Any]],
        other: Callable[[Arm], Callable[[], Any]],
        *,
        name: str = "other",
        check: bool = True,
    ) -> ModelsReport:
        """Measure two models side by side, under the candidate's recipe, and assert the gates.

        The gates are those of speed and memory: `min_speedup` is the other's step time by this
        one's, and `min_memory_reduction` is 1 - this one's peak / the other's.

        Args:
            setup: builds this model; it returns the step, as for `amp_benchmark`.
            other: builds the other one.
            name: what to call the other one.
            check: whether to assert the gates; if not, call the report's `check()` yourself.

        Raises:
            AmpRegression: a gate failed.
            AmpInconclusive: under ``--amp-strict``, a gate has no answer.
            AmpError: the test can't be measured as it is written.
        """
        __tracebackhide__ = True
        from pytest_amp.errors import AmpError
        from pytest_amp.experiment import against
        from pytest_amp.plugin.models_report import ModelsReport

        if not callable(other):
            raise AmpError(f"against(setup, other): other is a {type(other).__name__}, no function")
        if name == against.OURS:
            raise AmpError(f"against(..., name={name!r}) is what the test's own model is called")

        def run(job: Job, progress: Progress) -> AmpReport:
            return against.run(job, progress, other, name)

        report = ModelsReport.of(self._measured(setup, run))
        if check:
            report.check()
        return report

    def _check(self, setup: object) -> None:
        from pytest_amp.errors import AmpError

        if not callable(setup):
            raise AmpError(
                f"amp_benchmark(setup) takes a function of the arm, not a {type(setup).__name__}"
            )

    def _measured(
        self,
        setup: Callable[[Arm], Any],
        run: Callable[[Job, Progress], AmpReport] | None = None,
    ) -> AmpReport:
        __tracebackhide__ = True
        from pytest_amp.errors import AmpError

        if self._called:
            raise AmpError(
                "amp_benchmark was called twice in one test: one test is one measurement; "
                "use @pytest.mark.parametrize for several configurations"
            )
        if not collection.is_amp(self._item):
            raise AmpError(
                "amp_benchmark was requested by request.getfixturevalue alone, so that `-m amp` "
                "does not select this test: make it an argument of the test, or mark it amp"
            )
        self._check(setup)
        self._called = True
        return measure(self._item, setup, device_of(self._item), run=run)


def measure(
    item: pytest.Item,
    setup: Callable[[Arm], Any],
    device: Device,
    notes: Iterable[str] = (),
    run: Callable[[Job, Progress], AmpReport] | None = None,
) -> AmpReport:
    """Run the experiment of one test, compare it if that was asked for, and return the report.

    The report is also kept for the reporters, even if the experiment ends with an exception.

    Args:
        item: the test.
        setup: builds an arm and returns its step.
        device: the device to measure on.
        notes: notes that the report starts with.
        run: runs the experiment; by default the usual one.

    Raises:
        AmpError: the test can't be measured as it is written.
        Exception: whatever the test's own code raises.
    """
    __tracebackhide__ = True
    from pytest_amp.experiment import run as experiment
    from pytest_amp.experiment.job import failed
    from pytest_amp.plugin.live_line import LiveLine
    from pytest_amp.plugin.out_of_time import located
    from pytest_amp.progress import Progress

    live = LiveLine(item.config, item.nodeid)
    progress = Progress(show=item.config.stash.get(WATCHER, live.show), say=live.say)
    job = job_of(item, setup, device, notes)
    if job.settings.snapshot != "off":
        from pytest_amp.plugin import snapshot

        job = replace(job, snapshot=snapshot.stored_for(item, job.settings.snapshot == "update"))
    try:
        with located(job, progress):
            report = item.config.stash.get(RUNNER, run or experiment.run)(job, progress)
    except Exception as error:
        if job.for_cuda and device.type == "cpu" and _asks_for_a_gpu(error):
            pytest.skip(f"needs a CUDA device itself, and not the rules alone: {error}")
        item.stash[REPORT] = failed(job, progress, error)
        raise
    except pytest.xfail.Exception:
        raise
    except pytest.fail.Exception as error:
        item.stash[REPORT] = failed(job, progress, error)
        raise
    finally:
        live.clear()
    item.stash[REPORT] = report  # even if what follows raises
    if not job.settings.asks_fresh_processes:
        return _compared(item, report, job.settings)
    from pytest_amp.experiment import processes
    from pytest_amp.plugin import fresh

    device.empty_cache()
    again = fresh.again(item, report, progress)
    try:
        with located(job, progress):
            report = processes.over_processes(report, job.settings, again)
            item.stash[REPORT] = report
            report = _compared(item, report, job.settings)
            report = processes.confirmed(report, job.settings, again)
            item.stash[REPORT] = report
    finally:
        live.clear()
    return report


def _compared(item: pytest.Item, report: AmpReport, settings: Settings) -> AmpReport:
    """Return the report, compared with a stored one if that is asked for."""
    from pytest_amp.plugin import compare

    if compare.is_wanted(settings):
        report = compare.compared(item.config, report, settings, collection.id_once(item))
        item.stash[REPORT] = report
    return report


def job_of(
    item: pytest.Item, setup: Callable[[Arm], Any], device: Device, notes: Iterable[str] = ()
) -> Job:
    """Return a test as the experiment sees it."""
    from pytest_amp.experiment.job import Job

    return Job(
        nodeid=collection.id_of(item),
        setup=setup,
        device=device,
        settings=settings_of(item),
        fixture=item.stash.get(_SCALER, None),
        attempt=attempt_of(item),
        worker=os.environ.get("PYTEST_XDIST_WORKER"),
        rank=rank(),
        notes=tuple(notes),
        for_cuda=wants_cuda(item),
    )


def attempt_of(item: pytest.Item) -> int:
    """Return 1, or more if a rerun plugin runs the test again."""
    return int(getattr(item, "execution_count", 1))


def run_body(item: pytest.Function) -> None:
    """Measure a test whose body is the step: copy its fixtures for each arm, and assert the gates.

    Raises:
        AmpError: the test can't be measured as it is written.
        AmpRegression: a gate failed, or a finding of severity error is not suppressed.
        AmpInconclusive: under ``--amp-strict``, a gate has no answer.
    """
    __tracebackhide__ = True
    from pytest_amp.errors import AmpError
    from pytest_amp.lab.body import SELF, CopiedFixtures, setup_of_body
    from pytest_amp.lab.machine.device import Device

    names = item._fixtureinfo.argnames
    values = {name: item.funcargs[name] for name in names}
    body = item.obj
    if item.instance is not None and getattr(body, "__self__", None) is item.instance:
        values = {SELF: item.instance, **values}
        body = body.__func__
    shared = frozenset(name for name, value in values.items() if _is_pytests(value))
    fixtures = CopiedFixtures(values, shared)
    device, notes, settings = device_of(item), [], settings_of(item)
    where = fixtures.device()
    if where is not None and settings.device == "auto" and "cuda_device" not in names:
        if where.type != device.type:
            note = (
                f"measured on {where}, where the fixtures' parameters are, although {device} is "
                "available: to measure there, build them on the device of the amp_device fixture"
            )
            if "device" in settings.strict:
                raise AmpError(f"{note}, or choose {where} with --amp-device={where.type}")
            notes.append(note)
        device = Device(where)
    measure(item, setup_of_body(body, fixtures), device, notes).check()


def _is_pytests(value: object) -> bool:
    """Return whether a value belongs to pytest or a plugin of it, and must not be copied."""
    package = type(value).__module__.partition(".")[0]
    return package in ("_pytest", "pytest_benchmark", "pytest_mock", "pytest_subtests")


def settings_of(item: pytest.Item) -> Settings:
    """Return the settings in force for a test."""
    return options.item_settings(item, item.config.stash[options.LEVELS])


def device_of(item: pytest.Item) -> Device:
    """Return the device that a test is measured on; the one of cuda_device if it requests that.

    Under ``--amp-strict=device``, a test fails if it is meant for an accelerator and gets a CPU.
    """
    from pytest_amp.lab.machine import device

    if _DEVICE not in item.stash:
        settings = settings_of(item)
        names_one = settings.device.startswith("cuda:")
        cuda = device.cuda() if wants_cuda(item) and not names_one else None
        found = cuda or device.choose(settings.device)
        if "device" in settings.strict and (why := _fallback(settings, found)):
            pytest.fail(why, pytrace=False)
        item.stash[_DEVICE] = found
    chosen: Device = item.stash[_DEVICE]
    return chosen


def wants_cuda(item: pytest.Item) -> bool:
    """Return whether a test asks for a CUDA device, with the fixture of that name."""
    return "cuda_device" in getattr(item, "fixturenames", ())


def _asks_for_a_gpu(error: Exception) -> bool:
    """Return whether torch raised because code uses CUDA, where there is none."""
    return "not compiled with CUDA" in str(error) or "NVIDIA driver" in str(error)


def _cpu_stands_in(item: pytest.Item, settings: Settings) -> bool:
    """Return whether the CPU stands in for a CUDA device, by following its rules of autocast.

    It follows them while a test is measured, so it stands in for nothing else.
    """
    from pytest_amp.lab.machine import device

    measures = "amp_benchmark" in getattr(item, "fixturenames", ())
    if "device" in settings.strict or not (measures or collection.is_amp(item)):
        return False
    kind, there = device.choose(settings.device).type, device.has_accelerator()
    try:
        return kind == "cpu" and settings.policy_on(kind, there, for_cuda=True) == "cuda"
    except ValueError:  # told where the test is measured
        return False


def cuda_device_of(item: pytest.Item) -> Device:
    """Return this process's CUDA device, or skip the test; fail it under ``--amp-strict=device``.

    It is the one of ``--amp-device`` if that names one. In a static run without a GPU it is the
    CPU, under CUDA's rules.
    """
    from pytest_amp.lab.machine import device

    settings = settings_of(item)
    found = device.cuda()
    if found is not None and settings.device.startswith("cuda:"):
        found = device.choose(settings.device)
    if found is None and _cpu_stands_in(item, settings):
        found = device_of(item)
    if found is None:
        reason = f"needs a CUDA device: {_what_torch_sees()}"
        if "device" in settings.strict:
            pytest.fail(f"{reason}, and --amp-strict asks for it", pytrace=False)
        pytest.skip(reason)
    return found


def scaler_of(item: pytest.Item) -> FixtureScaler:
    """Return a GradScaler for the test, which stands for an arm's scaler while the arm runs."""
    from pytest_amp.lab.scaling.scaler import FixtureScaler

    item.stash[_SCALER] = FixtureScaler(device_of(item).type)
    return item.stash[_SCALER]


def _fallback(settings: Settings, found: Device) -> str | None:
    """Return why a test should not have fallen back to `found`.

    None means that it did not fall back, or that nothing says that it was meant for an accelerator.
    """
    from pytest_amp.lab.machine import device

    if found.is_accelerator or settings.device != "auto" or settings.static:
        return None
    named = [
        f"{name} is set for {key}"
        for name, threshold in settings.thresholds.items()
        for key in threshold.accelerators
    ]
    if not named and device.unseen() is None:
        return None
    return (
        f"--amp-strict: the test fell back to {found}, because "
        f"{' and '.join([*named, _what_torch_sees()])}; fix the driver or install a torch that "
        "is built for the accelerator; if the CPU is intended, say so with --amp-device=cpu"
    )


def _what_torch_sees() -> str:
    """Return a text such as ``this torch (2.13.0) is built for CUDA 13.0 and sees no GPU``."""
    import torch

    from pytest_amp.lab.machine import device

    unseen = device.unseen()
    built = "without CUDA" if unseen is None else f"for {unseen} and sees no GPU"
    return f"this torch ({torch.__version__}) is built {built}"
