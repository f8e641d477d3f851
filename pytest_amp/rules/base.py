"""What a rule is: a stable code, and a function from a subject to what it has to say of it.

Most rules look at a `Case`, one test's experiment. A few look at less: at what a GradScaler raised,
at the environments of two results, or at a test that never measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_amp.codes import CODES
from pytest_amp.judge.case import Case
from pytest_amp.results.values import Environment, Finding, Severity


@dataclass(frozen=True)
class Raised:
    """What a GradScaler of torch's own raised, and the user's line that called it, if known."""

    message: str
    location: str | None = None


@dataclass(frozen=True)
class Compared:
    """The environments of a stored result and of the one that is held against it."""

    before: Environment | None
    now: Environment | None


@dataclass(frozen=True)
class NeverCalled:
    """A test that requested amp_benchmark, passed, and never called it."""


Subject = Case | Raised | Compared | NeverCalled


@dataclass(frozen=True)
class Word:
    """What a rule says of a subject. `severity` overrides the rule's own."""

    message: str
    evidence: Mapping[str, Any]
    severity: Severity | None = None
    module: str | None = None
    location: str | None = None


@dataclass(frozen=True)
class Rule:
    """A code, and what finds it in subjects of the type `of`; a code may have several of these."""

    code: str
    check: Callable[[Any], Iterable[Word]]
    of: type[Subject] = Case

    def findings(self, subject: Subject) -> Iterator[Finding]:
        """What it says of a subject; nothing of one that is not its own."""
        for word in self.check(subject) if isinstance(subject, self.of) else ():
            yield Finding(
                code=self.code,
                name=CODES[self.code].name,
                severity=word.severity or CODES[self.code].severity,
                message=word.message,
                module=word.module,
                location=word.location,
                evidence=dict(word.evidence),
            )
