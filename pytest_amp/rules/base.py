"""Define what a rule is: a stable code, and a function from a test's case to what it has to say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_amp.codes import CODES
from pytest_amp.judge.case import Case
from pytest_amp.results.values import Finding, Severity


@dataclass(frozen=True)
class Word:
    """What a rule says about a case.

    Attributes:
        message: what is wrong and how to fix it.
        evidence: the figures behind it, as plain JSON.
        severity: replaces the rule's own severity, for a rule that speaks of harm which is not
            shown.
        module: the path of the module that it is about.
        location: the user's line, as ``file:line``.
    """

    message: str
    evidence: Mapping[str, Any]
    severity: Severity | None = None
    module: str | None = None
    location: str | None = None


@dataclass(frozen=True)
class Rule:
    """A code, and the function that finds it."""

    code: str
    check: Callable[[Case], Iterable[Word]]

    def findings(self, case: Case) -> Iterator[Finding]:
        """Yield a finding for each word that the rule has to say about the case."""
        for word in self.check(case):
            yield Finding(
                code=self.code,
                name=CODES[self.code].name,
                severity=word.severity or CODES[self.code].severity,
                message=word.message,
                module=word.module,
                location=word.location,
                evidence=dict(word.evidence),
            )
