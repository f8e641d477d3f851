"""Write the details below the table: each test's gates, findings and notes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from pytest_amp import units
from pytest_amp.render.text import (
    BAD,
    FAINT,
    GAP,
    GOOD,
    PLAIN,
    UNSURE,
    Line,
    Markup,
    Span,
    sentence,
    shorten,
    wrapped,
)
from pytest_amp.render.verdicts import both_arms, outcome_of, why_nothing
from pytest_amp.results.explanation import in_order
from pytest_amp.results.forecast import Forecast
from pytest_amp.results.report import AmpReport
from pytest_amp.results.training import VALUES, best, perplexity
from pytest_amp.results.values import COMPARED, Estimate, Finding, Gate, GateVerdict, arm_names
from pytest_amp.settings import table

_LABEL = 10  # the widest of the words that begin a line
_COLOURS: Mapping[GateVerdict, Markup] = {
    "pass": GOOD, "fail": BAD, "inconclusive": UNSURE, "not_gated": FAINT,
}  # fmt: skip


class Entry(NamedTuple):
    """A sentence with a label, and the label's colour."""

    label: str
    markup: Markup
    text: str


def details(
    reports: Sequence[AmpReport], width: int, verbosity: int, told: Collection[str] = ()
) -> Iterator[Line]:
    """Yield the lines about each test that has something to say.

    Args:
        reports: the reports of the tests.
        width: the width of the terminal.
        verbosity: pytest's; above 0, passed gates and how the test was measured are shown too.
        told: the ids of the tests whose failure pytest has told above. What that says is left out.
    """
    for report in reports:
        entries = [*(_figures(report) if report.nodeid in told else said(report))]
        if verbosity > 0:
            entries = [*_other_gates(report), *entries, *_measured(report)]
        if not entries:
            continue
        outcome = outcome_of(report)
        nodeid = shorten(report.nodeid, width - len(outcome.word) - len(GAP))
        yield Span(outcome.word, outcome.markup), Span(GAP + nodeid)
        for label, markup, text in entries:
            head = f"{label:<{_LABEL}}{GAP}"
            margin = " " * (len(GAP) + len(head))
            first, *more = wrapped(sentence(text), width - len(margin), "") or [""]
            yield Span(GAP), Span(head, markup), Span(first)
            for rest in more:
                yield (Span(margin + rest),)
        yield ()


def said(report: AmpReport) -> Iterator[Entry]:
    """Yield what is shown at any verbosity."""
    for gate in report.gates:
        if gate.verdict in ("fail", "inconclusive") or gate in report.unmeasured:
            yield _gate(gate)
    if report.baseline is not None and _changed_for_the_worse(report):
        yield Entry("baseline", PLAIN, str(report.baseline))
    for finding in in_order(report):
        yield Entry(finding.severity, BAD if finding.stands else UNSURE, _finding(finding))
    yield from _figures(report)
    for note in report.notes:
        yield Entry("note", PLAIN, note)


def _figures(report: AmpReport) -> Iterator[Entry]:
    """Yield the figures that have no gate of their own, which a failure's message leaves out."""
    yield from _forecasts(report)
    yield from _models(report)
    yield from _epochs(report)


def _forecasts(report: AmpReport) -> Iterator[Entry]:
    """Yield the forecasts that were asked for, a line each."""
    for number, each in enumerate(report.forecasts):
        yield Entry("" if number else "forecast", PLAIN, f"{each.device}: {each}")


def _models(report: AmpReport) -> Iterator[Entry]:
    """Yield what two models come to that are compared, the other one first."""
    for arm in report.arms.values():
        if arm.model is None:
            continue
        loss = arm.tail_loss
        parts = (
            f"{units.count(arm.parameters)} parameters",
            f"{units.duration(arm.step_time_s)} a step" if arm.step_time_s else "",
            units.size(arm.peak_bytes) if arm.peak_bytes is not None else "",
            "the loss is not finite" if loss is None else f"loss {loss:.4g}",
            "" if loss is None else f"perplexity {perplexity(loss):.4g}",
        )
        yield Entry("model", PLAIN, f"{arm.model}: {', '.join(part for part in parts if part)}")


def _epochs(report: AmpReport) -> Iterator[Entry]:
    """Yield each epoch of a training, with the figures of both arms."""
    fp32, amp = report.training.get("fp32", ()), report.training.get("amp", ())
    chosen = best(amp)
    for theirs, ours in zip(fp32, amp, strict=False):
        parts = [
            f"{part} {name} {units.change(f'{before[name]:.4g}', f'{after[name]:.4g}')}"
            for part, before, after in (
                ("train", theirs.train, ours.train),
                ("val", theirs.val, ours.val),
            )
            for name in VALUES
            if name in before and name in after and (part, name) != ("train", "perplexity")
        ]
        took = units.change(
            units.duration(theirs.epoch_duration), units.duration(ours.epoch_duration)
        )
        text = ", ".join([*parts, took])
        yield Entry(
            f"epoch {ours.epoch}", PLAIN, f"{text}; the best" if ours.epoch == chosen else text
        )


def _changed_for_the_worse(report: AmpReport) -> bool:
    return any(
        gate.name in COMPARED and gate.verdict in ("fail", "inconclusive") for gate in report.gates
    )


def _gate(gate: Gate) -> Entry:
    markup = UNSURE if gate.unmeasured else _COLOURS[gate.verdict]
    return Entry(gate.word, markup, f"{gate.name}: {gate.reason}")


def _finding(finding: Finding) -> str:
    return f"{finding} (confirmed by a rerun)" if finding.confirmed else str(finding)


def _other_gates(report: AmpReport) -> Iterator[Entry]:
    """Yield the gates that `said` leaves out."""
    for gate in report.gates:
        if gate.verdict == "pass" or gate not in report.asked:
            yield _gate(gate)


def _attainable(speedup: Estimate | None, ceiling: Forecast) -> str:
    """Return ``1.62x of an attainable 2.4x``, and what the amp step at its ceilings consists of."""
    if speedup is None or ceiling.high is None:
        return str(ceiling)
    figures = f"{units.ratio(speedup.value)} of an attainable {units.ratio(ceiling.high)}"
    return f"{figures}; that would be {ceiling.bounds}"


def _measured(report: AmpReport) -> Iterator[Entry]:
    """Yield how the test was measured, which is shown with -v."""
    for finding in report.findings:
        if finding.suppressed is not None:
            yield Entry("suppressed", FAINT, f"{finding} [{finding.suppressed}]")
    if reason := why_nothing(report):
        yield Entry("reason", PLAIN, reason)
    if report.baseline is not None and not _changed_for_the_worse(report):
        yield Entry("baseline", FAINT, str(report.baseline))
    if report.environment is not None:
        yield Entry("device", FAINT, f"{report.environment.device}, {report.environment.dtype}")
    if report.noise_floor is not None and math.isfinite(report.noise_floor):
        floor = units.share(report.noise_floor)
        yield Entry(
            "noise",
            FAINT,
            f"{arm_names(report.arms)['fp32']} drifts {floor} from itself under rounding",
        )
    for found in report.anchor:
        yield Entry("float64", FAINT, found.said(arm_names(report.arms)))
    if report.seeds:
        yield Entry("seeds", FAINT, ", ".join(map(str, report.seeds)))
    if report.speedup is not None:
        pairs = units.plural(
            sum(run.pairs for run in report.processes) or report.speedup.pairs, "pair"
        )
        steps = units.plural(report.speedup.block_steps, "step")
        yield Entry("timing", FAINT, f"{pairs} of blocks of {steps}")
    if report.processes:
        yield Entry("processes", FAINT, ", ".join(map(str, report.processes)))
    if report.contention is not None:
        yield Entry("machine", FAINT, report.contention.said(arm_names(report.arms)))
    if (ceiling := report.attainable) is not None:
        yield Entry("attainable", FAINT, _attainable(report.speedup, ceiling))
    fp32, amp = both_arms(report)
    if fp32 and amp and (fp32.reserved_bytes, amp.reserved_bytes) != (None, None):
        reserved = units.change(units.size(fp32.reserved_bytes), units.size(amp.reserved_bytes))
        yield Entry("reserved", FAINT, reserved)
    if any(report.phases_s.values()):
        phases = [
            f"{name} {units.duration(spent)}" for name, spent in report.phases_s.items() if spent
        ]
        whole = f"{units.duration(report.duration_s)} in all"
        yield Entry("phases", FAINT, ", ".join([*phases, whole]))
    chosen = [
        f"{name} {table.written(name, setting.value)} ({setting.source})"
        for name, setting in report.settings.items()
        if setting.source != "default"
    ]
    if chosen:
        yield Entry("settings", FAINT, ", ".join(chosen))
