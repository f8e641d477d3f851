"""Write the page of ``--amp-html`` and ``pytest-amp html``: one file that needs no others."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pytest_amp import extras, files, units
from pytest_amp.codes import CODES
from pytest_amp.render import model_plots, plots, training_plots, trend_plots
from pytest_amp.render.heading import heading
from pytest_amp.render.table import columns_of
from pytest_amp.render.text import text_of
from pytest_amp.render.verdicts import (
    GRAVITY,
    OUTCOMES,
    both_arms,
    kind_of,
    outcome_of,
    why_nothing,
)
from pytest_amp.results.explanation import in_order
from pytest_amp.results.report import AmpReport
from pytest_amp.results.trend import METRICS, Trend
from pytest_amp.results.values import ArmRun, Finding, against, arm_names
from pytest_amp.rules import explain


class Result(NamedTuple):
    """A result to show on the page.

    Attributes:
        report: its report.
        trend: its history, if there is one.
        origin: if it is a stored result, the run that it comes from.
    """

    report: AmpReport
    trend: Trend | None = None
    origin: str = ""


class Section(NamedTuple):
    """What the template shows of a test."""

    anchor: str
    report: AmpReport
    origin: str
    word: str
    kind: str
    reason: str
    findings: Sequence[Finding]
    figures: Mapping[str, str]
    history: Mapping[str, str]
    steps: Sequence[str]
    names: Mapping[str, str]
    compared: str
    foreseen: Sequence[tuple[str, str, str]]
    dtypes: Sequence[tuple[str, str, str]]
    operators: Sequence[tuple[str, str, str]]
    settings: Sequence[tuple[str, str, str]]


def missing() -> str | None:
    """Return what to say if a page can't be written for want of a package; None if it can."""
    return extras.missing("html", "an HTML report needs", "jinja2", "matplotlib")


def page(
    results: Sequence[Result], run: Mapping[str, Any] | None, created: str, version: str
) -> str:
    """Return the whole page.

    Args:
        results: the results; the gravest ones are shown first.
        run: what identifies the run, as in ``--amp-json``; None if results come from several runs.
        created: when the page is written, as ISO 8601.
        version: pytest-amp's version.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pytest_amp.render"),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = units.duration
    gravest_first = sorted(results, key=lambda each: GRAVITY.index(kind_of(each.report)))
    sections = [_section(number, each) for number, each in enumerate(gravest_first, 1)]
    reports = [each.report for each in results]
    counts = [
        (outcome.counted, kind, sum(kind_of(each) == kind for each in reports))
        for kind, outcome in OUTCOMES.items()
    ]
    return environment.get_template("page.html.jinja").render(
        sections=sections,
        columns=columns_of(reports),
        counts=[each for each in counts if each[2]],
        places=[text_of(line) for line in heading(reports, 10_000, 0, {})],
        run=run,
        created=created.replace("T", " ").replace("+00:00", " UTC"),
        version=version,
        codes=CODES,
        explained=explain.for_terminal,
    )


def write(path: str | os.PathLike[str], text: str) -> None:
    """Write the whole page, or leave the file as it was if that fails."""
    files.write(path, text.encode("utf-8", errors="backslashreplace"))


def _printable(value: object) -> object:
    """Escape control characters in text.

    Names come from anywhere, and some characters reverse the direction of the rest of a line.
    """
    if type(value) is not str:  # Markup, for one, has been escaped already
        return value
    return "\n".join(map(units.printable, value.split("\n")))


def _section(number: int, result: Result) -> Section:
    report, trend = result.report, result.trend
    return Section(
        anchor=f"test-{number}",
        report=report,
        origin=result.origin,
        word=outcome_of(report).word,
        kind=kind_of(report),
        reason=why_nothing(report),
        findings=[
            *in_order(report),
            *(each for each in report.findings if each.suppressed is not None),
        ],
        figures={
            **model_plots.figures(report.arms),
            **training_plots.figures(report.training, report.arms),
            **plots.figures(report),
        },
        history=trend_plots.figures(trend) if trend else {},
        steps=[f"{each.name}, {step}" for each in METRICS for step in trend.steps_in_words(each)]
        if trend
        else [],
        names=arm_names(report.arms),
        compared=against(report.arms, report.environment.dtype) if report.environment else "",
        foreseen=_foreseen(report),
        dtypes=_dtypes(report),
        operators=_operators(report),
        settings=[
            (name, str(setting.value), setting.source)
            for name, setting in report.settings.items()
            if setting.source != "default"
        ],
    )


def _foreseen(report: AmpReport) -> list[tuple[str, str, str]]:
    """Return a device, its range of speedups and what bounds it, for each forecast, here first."""
    here = [("this device, attainable", report.attainable)] if report.attainable else []
    return [
        (name, each.range, each.bounds or each.reason or "")
        for name, each in [*here, *((each.device, each) for each in report.forecasts)]
    ]


def _dtypes(report: AmpReport) -> list[tuple[str, str, str]]:
    """Return, for each dtype, its name and its shares of the fp32 arm's and the amp arm's FLOPs."""
    shares = [_shares(arm) for arm in both_arms(report)]
    return [
        (name, *(units.share(each.get(name, 0.0)) if each else units.NOTHING for each in shares))  # type: ignore[misc]
        for name in dict.fromkeys(itertools.chain(*shares))
    ]


def _shares(arm: ArmRun | None) -> dict[str, float]:
    flops = arm.flops_by_dtype if arm else {}
    total = sum(flops.values())
    return {name: count / total for name, count in flops.items()} if total else {}


def _operators(report: AmpReport) -> list[tuple[str, str, str]]:
    """Return, for each operator, its name and each arm's calls by dtype."""
    arms = [arm.operators if arm else {} for arm in both_arms(report)]
    return [
        (name, *(_calls(each.get(name, {})) for each in arms))  # type: ignore[misc]
        for name in dict.fromkeys(itertools.chain(*arms))
    ]


def _calls(by_dtype: Mapping[str, int]) -> str:
    listed = [dtype + (f" x{count}" if count > 1 else "") for dtype, count in by_dtype.items()]
    return ", ".join(listed) or units.NOTHING
