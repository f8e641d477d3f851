"""Define what a rule is: a stable code, and a function from a subject to what it says about it.

Most rules look at a `Case`, the experiment of one test. A few look at less: at what a GradScaler
raised, at an exception that only one arm raises, at the environments of two results, or at a test
that never measured.
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
    """What torch's own GradScaler raised.

    Attributes:
        message: the exception's message.
        location: the user's line that called the scaler, if it is known.
    """

    message: str
    location: str | None = None


@dataclass(frozen=True)
class RaisedAlone:
    """An exception that one arm raises, each time, where the other arm runs.

    Attributes:
        arm: the arm that raises.
        kind: the exception's class name.
        message: its message.
        location: the user's line, if there is one.
        library: an installed library's line that the user's line led to.
        op: the operator or function of torch that raised.
        dtypes: the dtypes that it was given, in the order of its arguments, each once.
        function: the custom autograd function in which it raised.
    """

    arm: str
    kind: str
    message: str
    location: str | None = None
    library: str | None = None
    op: str | None = None
    dtypes: tuple[str, ...] = ()
    function: str | None = None


@dataclass(frozen=True)
class Mended:
    """A failed loss gate that passes once a few lines are kept in float32.

    Attributes:
        lines: the lines, in the order in which they run.
        value: the loss difference then.
    """

    lines: tuple[str, ...]
    value: float | None


@dataclass(frozen=True)
class Compared:
    """The environments of a stored result and of the result that is compared with it."""

    before: Environment | None
    now: Environment | None


@dataclass(frozen=True)
class NeverCalled:
    """A test that requested amp_benchmark, passed, and never called it."""


Subject = Case | Raised | RaisedAlone | Mended | Compared | NeverCalled


@dataclass(frozen=True)
class Word:
    """What a rule says about a subject.

    Attributes:
        message: what is wrong and how to fix it.
        evidence: the figures behind it, as plain JSON.
        severity: replaces the rule's own severity; a rule lowers it where no harm is shown.
        module: the path of the module that it is about.
        location: the user's line, as ``file:line``.
        no_place: why there is no line, where the rule knows that better than `NOT_SEEN`.
    """

    message: str
    evidence: Mapping[str, Any]
    severity: Severity | None = None
    module: str | None = None
    location: str | None = None
    no_place: str | None = None

    def why_nowhere(self, code: str) -> str | None:
        """Return why there is no line of the user's; None if there is one."""
        return None if self.location else self.no_place or CODES[code].placeless or NOT_SEEN


# Why a finding has no line, if its rule looks for one.
NOT_SEEN = "its line was looked for and not seen"


@dataclass(frozen=True)
class Rule:
    """A code, and a function that finds it in subjects of one type; a code may have several.

    Attributes:
        code: the code.
        check: yields a word for each thing that it finds in a subject.
        of: the type of subject that `check` takes.
    """

    code: str
    check: Callable[[Any], Iterable[Word]]
    of: type[Subject] = Case

    def findings(self, subject: Subject) -> Iterator[Finding]:
        """Yield what the rule finds in the subject; nothing if the subject is of another type."""
        for word in self.check(subject) if isinstance(subject, self.of) else ():
            yield Finding(
                code=self.code,
                name=CODES[self.code].name,
                severity=word.severity or CODES[self.code].severity,
                message=word.message,
                module=word.module,
                location=word.location,
                no_location=word.why_nowhere(self.code),
                evidence=dict(word.evidence),
            )


def rule(code: str, of: type[Subject] = Case) -> Callable[[Callable[[Any], Iterable[Word]]], Rule]:
    """Make a rule of the function below; what is written in a module of `registry` is a rule."""
    return lambda check: Rule(code, check, of)
