"""What a rule is: a stable code, and a function from one test's case to what it has to say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_amp.codes import CODES
from pytest_amp.judge.case import Case
from pytest_amp.results.values import Finding, Severity


@dataclass(frozen=True)
class Word:
    """What a rule says of a case. `severity` overrides the rule's own."""

    message: str
    evidence: Mapping[str, Any]
    severity: Severity | None = None
    module: str | None = None
    location: str | None = None


@dataclass(frozen=True)
class Rule:
    """A code, and what finds it. A `Word` of its own severity speaks where no harm is shown."""

    code: str
    check: Callable[[Case], Iterable[Word]]

    def findings(self, case: Case) -> Iterator[Finding]:
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
