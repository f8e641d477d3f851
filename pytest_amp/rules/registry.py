"""Collect all rules, and ask those that are selected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import Finding, suppression
from pytest_amp.rules import (
    accumulation,
    autocast,
    gradients,
    measurement,
    memory,
    numerics,
    one_arm,
    overflow,
    parameters,
    recipes,
    resume,
    scale_drill,
    scaler,
    speed,
)
from pytest_amp.rules.base import Compared, Rule, Subject

GROUPS = (
    measurement,
    recipes,
    autocast,
    parameters,
    one_arm,
    scaler,
    overflow,
    scale_drill,
    accumulation,
    resume,
    numerics,
    gradients,
    speed,
    memory,
)
RULES: tuple[Rule, ...] = tuple(
    sorted(
        (each for group in GROUPS for each in vars(group).values() if isinstance(each, Rule)),
        key=lambda rule: rule.code,
    )
)


def findings(
    subject: Subject, select: Sequence[str], ignore: Mapping[str, str]
) -> tuple[Finding, ...]:
    """Return what the selected rules find in the subject.

    A finding that `ignore` suppresses is kept, with the reason that was given.
    """
    return tuple(
        replace(finding, suppressed=suppression(finding, ignore))
        for rule in RULES
        if rule.code.startswith(tuple(select))
        for finding in rule.findings(subject)
    )


def beside_baseline(report: AmpReport, stored: AmpReport) -> tuple[Finding, ...]:
    """Return what the report's selected rules find when comparing it with a stored result."""
    select = map(str, report.setting("select", list, ["AMP"]))
    ignore = {name: str(why) for name, why in report.setting("ignore", dict, {}).items()}
    return findings(Compared(stored.environment, report.environment), tuple(select), ignore)
