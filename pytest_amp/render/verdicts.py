"""Say how a test came out, in the words and colours of the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pytest_amp.render.text import BAD, FAINT, GOOD, UNSURE, Markup, sentence
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import ArmRun


class Outcome(NamedTuple):
    """The words and the colour for how a test came out.

    Attributes:
        word: the word in the table.
        counted: the word in the closing line.
        markup: the colour of both.
    """

    word: str
    counted: str
    markup: Markup


# The closing line counts them in this order.
OUTCOMES: Mapping[str, Outcome] = {
    "pass": Outcome("PASS", "passed", GOOD),
    "fail": Outcome("FAIL", "failed", BAD),
    "error": Outcome("ERROR", "error", BAD),
    "unanswered": Outcome("NO ANSWER", "without an answer", BAD),
    "inconclusive": Outcome("INCONCLUSIVE", "inconclusive", UNSURE),
    "skipped": Outcome("SKIPPED", "skipped", FAINT),
}
# What is shown first.
GRAVITY = ("fail", "error", "unanswered", "inconclusive", "pass", "skipped")


def both_arms(report: AmpReport) -> tuple[ArmRun | None, ArmRun | None]:
    """Return the fp32 and the amp arm; None for one that never ran, for example after an error."""
    return report.arms.get("fp32"), report.arms.get("amp")


def why_nothing(report: AmpReport) -> str:
    """Return on one line why a test has no figures; "" if it has some."""
    if report.verdict == "skipped":
        return sentence(report.skip_reason or "skipped without a reason")
    if report.verdict != "error":
        return ""
    error = report.error
    if error is None:
        return "ended by an exception"
    parts = [f"{error.arm} arm" if error.arm else "", error.phase or ""]
    parts += [f"step {error.step}" if error.step is not None else "", error.type]
    return sentence(f"{', '.join(part for part in parts if part)}: {error.message}")


def kind_of(report: AmpReport) -> str:
    """Return the verdict, or "unanswered" for a pass that ``--amp-strict`` does not accept."""
    return "unanswered" if report.verdict == "pass" and report.unanswered else report.verdict


def outcome_of(report: AmpReport) -> Outcome:
    """Return the words and the colour for how a test came out."""
    outcome = OUTCOMES[kind_of(report)]
    return outcome._replace(markup=BAD) if report.unanswered else outcome


def last_attempts(reports: Sequence[AmpReport]) -> list[AmpReport]:
    """Return the reports without those of attempts that a rerun followed."""
    tests = {(report.nodeid, report.worker, report.rank): report for report in reports}
    return list(tests.values())


def counted(
    reports: Iterable[AmpReport], order: Iterable[str] = OUTCOMES
) -> list[tuple[str, Markup]]:
    """Return how many tests came out in which way, such as ``4 passed``, and the colour of each."""
    counter = Counter(map(kind_of, reports))
    return [
        (f"{counter[name]} {_counted(name, counter[name])}", OUTCOMES[name].markup)
        for name in order
        if counter[name]
    ]


def _counted(name: str, count: int) -> str:
    return f"{OUTCOMES[name].counted}{'s' if name == 'error' and count > 1 else ''}"
