"""The linter for the training step: every rule, and which of them may speak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import Finding, suppression
from pytest_amp.rules import (
    autocast,
    measurement,
    memory,
    numerics,
    scale_drill,
    scaler,
    speed,
)
from pytest_amp.rules.base import Compared, Rule, Subject

GROUPS = (measurement, autocast, scaler, scale_drill, numerics, speed, memory)
RULES: tuple[Rule, ...] = tuple(
    sorted((rule for group in GROUPS for rule in group.RULES), key=lambda rule: rule.code)
)


def findings(
    subject: Subject, select: Sequence[str], ignore: Mapping[str, str]
) -> tuple[Finding, ...]:
    """What the selected rules say. What `ignore` suppresses stays, with the reason given."""
    return tuple(
        replace(finding, suppressed=suppression(finding, ignore))
        for rule in RULES
        if rule.code.startswith(tuple(select))
        for finding in rule.findings(subject)
    )


def beside_baseline(report: AmpReport, stored: AmpReport) -> tuple[Finding, ...]:
    """What the rules that the report selects say of it and the result that it is held against."""
    select = map(str, report.setting("select", list, ["AMP"]))
    ignore = {name: str(why) for name, why in report.setting("ignore", dict, {}).items()}
    return findings(Compared(stored.environment, report.environment), tuple(select), ignore)
