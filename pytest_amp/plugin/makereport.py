"""Turn what pytest saw of a test into the report that the reporters get."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from pytest_amp.errors import AmpError
from pytest_amp.plugin import collection, html_extras, junit, measuring
from pytest_amp.provenance import now
from pytest_amp.results.report import AmpInconclusive, AmpRegression, AmpReport
from pytest_amp.results.values import Failure

UNASSERTED = (
    "the test passed although a gate failed or has no answer: the gates were left unasserted "
    "(check=False without result.check()), or their exception was caught"
)

XFAILED = "expected to fail (xfail), so pytest does not count it as failed"

_RUNS = pytest.StashKey[bool]()  # whether the test's function runs
# What its subtests raised. The test goes on behind them.
_SUBTESTS = pytest.StashKey[list[pytest.ExceptionInfo[BaseException]]]()

# The message of these is the whole story; the place in our code that raised them is not part of it.
SAID_IN_FULL = (AmpRegression, AmpInconclusive)


@contextmanager
def running(item: pytest.Item) -> Iterator[None]:
    """Know inside that the test's function runs, so that what is reported is a subtest of it."""
    item.stash[_SUBTESTS] = []
    try:
        item.stash[_RUNS] = True
        yield
    finally:
        item.stash[_RUNS] = False


def attach(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
    """Attach our report to pytest's, where reporters and xdist's controller find it.

    A subtest has none: the measurement is its test's.
    """
    # If the body is the step, an AmpError's traceback has only lines of ours.
    in_full = (*SAID_IN_FULL, AmpError) if collection.is_step(item) else SAID_IN_FULL
    if call.excinfo is not None and isinstance(call.excinfo.value, in_full):
        report.longrepr = call.excinfo.getrepr(style="value")
        if isinstance(call.excinfo.value, SAID_IN_FULL):
            report.amp_told = collection.id_of(item)  # type: ignore[attr-defined]
    if item.stash.get(_RUNS, False):
        if call.excinfo is not None and (report.failed or hasattr(report, "wasxfail")):
            item.stash[_SUBTESTS].append(call.excinfo)
        return
    report.amp_ids = collection.id_of(item), collection.id_once(item)  # type: ignore[attr-defined]
    if report.when == "call" or (report.when == "setup" and not report.passed):
        amp = _report(item, call, report)
        report.amp = amp.to_dict()  # type: ignore[attr-defined]
        junit.add(item, report, amp)
        html_extras.add(item.config, report, amp)


def record(
    item: pytest.Item, report: pytest.TestReport, run: Callable[[], Mapping[str, Any]]
) -> None:
    """Hand a measured test's step times to pytest-benchmark.

    Args:
        item: the test.
        report: pytest's report, with ours attached.
        run: returns what identifies this run of pytest.
    """
    if report.when == "call" and hasattr(report, "amp") and measuring.settings_of(item).record:
        from pytest_amp.plugin import benchmark

        benchmark.add(item, report.amp, run)


def require_measurement(item: pytest.Item) -> None:
    """Fail a test that requested amp_benchmark, and passed without measuring anything (AMP001).

    Under ``--amp-strict=unmeasured``, also assert the gates of a test that left them unasserted.

    Raises:
        AmpRegression: nothing was measured, or a gate failed.
        AmpInconclusive: a gate has no answer.
    """
    __tracebackhide__ = True
    measured = item.stash.get(measuring.REPORT, None)
    if measured is not None and not measured.checked and "unmeasured" in measured.strict:
        measured.check()
    if "amp_benchmark" not in getattr(item, "funcargs", {}) or measured is not None:
        return
    from pytest_amp.experiment.job import nothing_measured

    job = measuring.job_of(item, lambda _: None, measuring.device_of(item))
    item.stash[measuring.REPORT] = nothing_measured(job)
    raise AmpRegression(item.stash[measuring.REPORT])


def _report(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> AmpReport:
    measured = item.stash.get(measuring.REPORT, None)
    if measured is not None:
        del item.stash[measuring.REPORT]
        return _reconciled(measured, call, report, item.stash.get(_SUBTESTS, []))
    blank = AmpReport(
        nodeid=collection.id_of(item),
        verdict="skipped" if report.skipped else "error",
        started=now(),
        duration_s=call.duration,
        attempt=measuring.attempt_of(item),
        settings=measuring.settings_of(item).described(),
    )
    if report.skipped:
        return replace(blank, skip_reason=_skip_reason(report))
    return replace(blank, error=_failure(call, call.excinfo))


def _reconciled(
    measured: AmpReport,
    call: pytest.CallInfo[None],
    report: pytest.TestReport,
    subtests: list[pytest.ExceptionInfo[BaseException]],
) -> AmpReport:
    """Return the report, with a note or another verdict if pytest's outcome is not the same.

    A test that ended with an exception that is not ours has not passed here either, so it never
    becomes a baseline.
    """
    raised = [*subtests, *filter(None, [call.excinfo])]
    if not raised:
        unasserted = measured.verdict == "fail" or measured.unanswered
        return replace(measured, notes=(*measured.notes, UNASSERTED)) if unasserted else measured
    foreign = [each for each in raised if not isinstance(each.value, SAID_IN_FULL)]
    if measured.verdict == "fail" or not foreign:
        if hasattr(report, "wasxfail"):
            note = f"{XFAILED}: {report.wasxfail}" if report.wasxfail else XFAILED
            return replace(measured, notes=(*measured.notes, note))
        return measured
    # The user's own assertion or skip, after a good measurement.
    if report.skipped:
        return replace(measured, verdict="skipped", skip_reason=_skip_reason(report))
    return replace(measured, verdict="error", error=measured.error or _failure(call, foreign[0]))


def crashed(nodeid: str, report: pytest.TestReport) -> AmpReport:
    """Return the report of a test during which xdist's worker died."""
    error = Failure(None, "call", None, "Crash", str(report.longrepr))
    return AmpReport(nodeid=nodeid, verdict="error", started=now(), error=error)


def _failure(
    call: pytest.CallInfo[None], error: pytest.ExceptionInfo[BaseException] | None
) -> Failure:
    kind = "none" if error is None else error.type.__name__
    message = "" if error is None else str(error.value)
    return Failure(None, call.when, None, kind, message)


def _skip_reason(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return f"xfail: {report.wasxfail}"
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return str(report.longrepr)
