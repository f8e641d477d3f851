"""Rerun an arm with a change, to show whether a suspect is the cause of a failed gate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from pytest_amp.errors import unless_our_bug
from pytest_amp.experiment import line_search, suspects
from pytest_amp.judge import contention, loss
from pytest_amp.judge.case import Case
from pytest_amp.lab.arm import Setup
from pytest_amp.lab.phases import counterfactuals, parity, timing
from pytest_amp.lab.watch import kernel_time
from pytest_amp.lab.workbench import Workbench
from pytest_amp.observations import Timing
from pytest_amp.results.values import Finding
from pytest_amp.rules import registry
from pytest_amp.rules.base import Mended
from pytest_amp.settings.resolved import Settings

__tracebackhide__ = unless_our_bug

# The share of max_time that each remedy may take.
_SHARE_OF_TIME = 1 / 6
# How often the steps are run again to explain one gate.
_MOST_RERUNS = 5

_CHANGES: Mapping[suspects.Remedy, Callable[[Setup], Setup]] = {
    suspects.CHANNELS_LAST: counterfactuals.channels_last,
    suspects.AUTOTUNED: counterfactuals.autotuned,
}


def confirmed(
    bench: Workbench, settings: Settings, case: Case, found: tuple[Finding, ...]
) -> tuple[Finding, ...]:
    """Return the findings, with what reruns of the suspects of each failing gate showed.

    They end with the first that is the cause.

    Args:
        bench: builds the arms for the reruns.
        settings: the test's settings.
        case: what was seen and judged.
        found: what the rules found.
    """
    found = _tried(bench, settings, case, found, suspects.by_line)
    if suspects.wants_lines(found, case):
        with _ending_early("the search for lines", bench):
            found = _with_lines(bench, settings, case, found)
    return _tried(bench, settings, case, found, suspects.by_module)


def _tried(
    bench: Workbench,
    settings: Settings,
    case: Case,
    found: tuple[Finding, ...],
    choose: Callable[[Finding, Case], tuple[suspects.Suspect, ...]],
) -> tuple[Finding, ...]:
    """Return the findings with what reruns of their suspects showed.

    A gate's suspects are tried until one is confirmed, unless one was before.
    """
    reruns: Counter[str] = Counter()
    if any(each.confirmed for each in found):
        reruns["loss_diff"] = _MOST_RERUNS
    for index, finding in enumerate(found):
        for suspect in choose(finding, case):
            if reruns[suspect.gate] == _MOST_RERUNS:
                continue
            reruns[suspect.gate] += 1
            bench.progress.at("confirming", "amp")
            with _ending_early(finding.code, bench):
                judged = suspects.judged(
                    found[index], suspect, _rerun(bench, settings, suspect, case)
                )
                found = (*found[:index], judged, *found[index + 1 :])
                if judged.confirmed:
                    reruns[suspect.gate] = _MOST_RERUNS
    return found


def _with_lines(
    bench: Workbench, settings: Settings, case: Case, found: tuple[Finding, ...]
) -> tuple[Finding, ...]:
    """Return the findings with the few lines that are enough for the loss gate, if there are."""
    reruns: dict[frozenset[str], Case] = {}

    def passes(lines: frozenset[str]) -> bool:
        bench.progress.at("confirming", "amp")
        rerun = _rerun(bench, settings, suspects.Suspect("loss_diff", (*lines,)), case)
        reruns[lines] = rerun
        return suspects.gate_of(rerun, "loss_diff").verdict == "pass"

    lines = line_search.smallest(suspects.lines_to_try(case), passes, settings.max_time)
    if not lines:
        return found
    lines = lines[::-1]  # the first that ran is where it begins
    suspect, rerun = suspects.Suspect("loss_diff", lines), reruns[frozenset(lines)]
    index = suspects.about_numbers(found)
    if index is not None:
        finding = found[index]
        judged = suspects.judged(finding, suspect, rerun)
        if finding.evidence.get("op"):  # it knows the operator that went wrong
            judged = replace(judged, location=finding.location)
        return (*found[:index], judged, *found[index + 1 :])
    mended = Mended(lines, suspects.gate_of(rerun, "loss_diff").value)
    words = registry.findings(mended, settings.select, settings.ignore)
    return (*found, *(replace(each, confirmed=each.suppressed is None) for each in words))


def _rerun(bench: Workbench, settings: Settings, suspect: suspects.Suspect, case: Case) -> Case:
    """Return the case with the amp arm run again, without the suspect.

    If steps are skipped in one of the runs, the fp32 arm is run again too, and leaves out the same.
    Of several seeds, the one with the largest difference runs again, and is judged alone.
    """
    steps, seen = settings.steps, loss.of_hardest_seed(case.seen, case.limits)
    with bench.seeded(seen.seed):
        if suspect.lines or suspect.modules:
            amp, skipped = counterfactuals.in_float32(bench, steps, suspect.modules, suspect.lines)
        else:
            amp, skipped = counterfactuals.without_cast_cache(bench, steps)
        skips = amp.skipped_steps or seen.amp.skipped_steps
        seen = replace(seen, amp=amp)
        if skips:
            seen = replace(seen, fp32=parity.run(bench, "fp32", steps, skipped)[0])
    return replace(case, seen=seen)


def try_remedies(bench: Workbench, settings: Settings, case: Case) -> None:
    """Time amp steps with each remedy against amp steps without, and note the ones that help."""
    rate, budget = settings.error_rate, settings.max_time * _SHARE_OF_TIME

    def stop(timed: Timing) -> str | None:
        if suspects.is_settled(timed.ratios, rate):
            return "decided"
        return "budget" if timed.elapsed_s >= budget else None

    for remedy in suspects.remedies(case):
        sides = timing.Side("amp"), timing.Side("amp", _CHANGES[remedy])
        with _ending_early(remedy.name, bench):
            timed = timing.run(bench, timing.Plan(settings.warmup, stop), sides)
            said = suspects.helped(remedy, timed, rate)
            if said:
                bench.notes.append(said)


def try_fewer_threads(bench: Workbench, settings: Settings, case: Case) -> None:
    """Where the gate has no answer for want of processors, note what fewer threads would show."""
    timed, rate = case.seen.timing, settings.error_rate
    threads = contention.threads_to_try(timed) if timed else None
    if threads is None or case.gates["speedup"].verdict not in ("fail", "inconclusive"):
        return

    def stop(timed: Timing) -> str | None:
        if suspects.is_precise(timed.ratios, rate):
            return "precise"
        return "budget" if timed.elapsed_s >= settings.max_time * _SHARE_OF_TIME else None

    change = counterfactuals.with_threads(threads)
    sides = timing.Side("fp32", change), timing.Side("amp", change)
    with _ending_early("fewer threads", bench):
        found = timing.run(bench, timing.Plan(settings.warmup, stop), sides)
        bench.notes.append(suspects.with_threads(threads, found, rate))


def look_for_idling(bench: Workbench, settings: Settings, case: Case) -> Case:
    """Return the case; if the speed gate is not passed, with the time that the device is busy."""
    timed = case.seen.timing
    if timed is None or case.gates["speedup"].verdict not in ("fail", "inconclusive"):
        return case
    with _ending_early("the accelerator's idle time", bench):
        timed = replace(timed, busy_s=kernel_time.of_amp(bench, settings.warmup))
    return replace(case, seen=replace(case.seen, timing=timed))


@contextmanager
def _ending_early(what: str, bench: Workbench) -> Iterator[None]:
    """Note an exception of a rerun and go on: the verdict does not depend on the rerun."""
    try:
        yield
    except Exception as error:  # noqa: BLE001
        bench.notes.append(f"the rerun for {what} ended early: {type(error).__name__}: {error}")
