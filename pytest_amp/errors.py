"""What a test fails with, and what says that it can't be measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_amp.results.values import AmpReport


class AmpError(Exception):
    """The test can't be measured as it is written; the message names the thing and the fix."""

    __module__ = "pytest_amp"


class AmpRegression(AssertionError):
    """Mixed precision missed a gate, or a finding of severity error stands.

    `report` is the `AmpReport` with everything that was measured.
    """

    __module__ = "pytest_amp"

    def __init__(self, report: AmpReport) -> None:
        super().__init__(report.explain())
        self.report = report


class AmpInconclusive(AssertionError):
    """Under ``--amp-strict``: a gate had no answer within its budget, or could not be measured.

    Not a regression: measuring again may well decide, so a rerun plugin can retry this
    exception and only it. `report` is the `AmpReport`.
    """

    __module__ = "pytest_amp"

    def __init__(self, report: AmpReport) -> None:
        super().__init__(report.explain())
        self.report = report


def add_note(error: BaseException, text: str) -> None:
    """Say more of an exception that goes its way."""
    if hasattr(error, "add_note"):
        error.add_note(text)
    else:  # Python 3.10: pytest shows the attribute all the same
        notes: Any = error
        notes.__notes__ = [*getattr(error, "__notes__", []), text]


def none_of_ours(info: Any) -> bool:
    """The ``__tracebackhide__`` of the modules that stand between pytest and the user's step.

    `info` is pytest's ExceptionInfo. Our frames are hidden where they tell nothing: the user's code
    raised, or the message of one of our own exceptions says it all. A bug of ours stays in sight.
    """
    if info is None or isinstance(info.value, (AmpError, AmpRegression, AmpInconclusive)):
        return True
    innermost = info.tb
    while innermost.tb_next is not None:
        innermost = innermost.tb_next
    name = str(innermost.tb_frame.f_globals.get("__name__"))
    return name.partition(".")[0] != __package__
