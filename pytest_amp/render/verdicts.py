"""How a test came out, in the words and colours of the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pytest_amp.render.text import BAD, FAINT, GOOD, UNSURE, Markup, sentence
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import ArmRun


class Outcome(NamedTuple):
    """The word in the table, the word in the closing count, and their colour."""

    word: str
    counted: str
    markup: Markup


# In the order in which the closing line counts them.
OUTCOMES: Mapping[str, Outcome] = {
    "pass": Outcome("PASS", "passed", GOOD),
    "fail": Outcome("FAIL", "failed", BAD),
    "error": Outcome("ERROR", "error", BAD),
    "unanswered": Outcome("NO ANSWER", "without an answer", BAD),
    "inconclusive": Outcome("INCONCLUSIVE", "inconclusive", UNSURE),
    "skipped": Outcome("SKIPPED", "skipped", FAINT),
}


def both_arms(report: AmpReport) -> tuple[ArmRun | None, ArmRun | None]:
    """The two arms; None for one that never ran, as after an error."""
    return report.arms.get("fp32"), report.arms.get("amp")


def why_nothing(report: AmpReport) -> str:
    """Why a test has no figures, on one line; empty where it has some."""
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
    """The verdict; a pass that ``--amp-strict`` does not let pass is none."""
    return "unanswered" if report.verdict == "pass" and report.unanswered else report.verdict


def outcome_of(report: AmpReport) -> Outcome:
    outcome = OUTCOMES[kind_of(report)]
    return outcome._replace(markup=BAD) if report.unanswered else outcome
