"""Collect all rules, and ask those that are selected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pytest_amp.codes import CODES
from pytest_amp.judge.case import Case
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
from pytest_amp.rules.base import Rule

NOTHING_MEASURED = Finding(
    code="AMP001",
    name=CODES["AMP001"].name,
    severity=CODES["AMP001"].severity,
    message=(
        "the test requested amp_benchmark and never called it: a gate that measured nothing is "
        "not green; call amp_benchmark(setup)"
    ),
)

GROUPS = (measurement, autocast, scaler, scale_drill, numerics, speed, memory)
RULES: tuple[Rule, ...] = tuple(
    sorted((rule for group in GROUPS for rule in group.RULES), key=lambda rule: rule.code)
)


def findings(case: Case, select: Sequence[str], ignore: Mapping[str, str]) -> tuple[Finding, ...]:
    """Return what the selected rules find.

    A finding that `ignore` suppresses is kept, with the reason that was given.
    """
    return tuple(
        replace(finding, suppressed=suppression(finding, ignore))
        for rule in RULES
        if rule.code.startswith(tuple(select))
        for finding in rule.findings(case)
    )


def in_exception(
    message: str, location: str | None, select: Sequence[str], ignore: Mapping[str, str]
) -> tuple[Finding, ...]:
    """Return what the selected rules say about an exception that a GradScaler raised."""
    found = scaler.protocol_violated(message, location)
    if found is None or not found.code.startswith(tuple(select)):
        return ()
    return (replace(found, suppressed=suppression(found, ignore)),)
