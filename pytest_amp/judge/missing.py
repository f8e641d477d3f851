"""Find the tests that a baseline has and a run has not, whose gates would vanish in silence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping

from pytest_amp.results.report import AmpReport

# How alike two ids have to be for one to be taken for the other's new name.
_ALIKE = 0.8
# Each one that is gone is compared with each new one, which takes seconds for so many pairs.
_MOST_COMPARED = 20_000


def missing(reports: Iterable[AmpReport], baseline: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each test that the baseline measured and this run did not.

    Args:
        reports: the run's reports.
        baseline: by the id of each test that was measured there, what to call the stored run.
    """
    now: dict[str, AmpReport] = {report.nodeid: report for report in reports}
    new = [
        nodeid
        for nodeid, report in now.items()
        if nodeid not in baseline and report.verdict != "skipped"
    ]
    comparable = len(new) * len(baseline) <= _MOST_COMPARED
    for nodeid, run in baseline.items():
        report = now.get(nodeid)
        if report is None:
            renamed = _renamed(nodeid, new) if comparable else ""
            yield f"{nodeid} was measured in {run}, and did not run{renamed}"
        elif report.verdict == "skipped":
            reason = f" ({report.skip_reason})" if report.skip_reason else ""
            yield f"{nodeid} was measured in {run}, and was skipped{reason}"


def _renamed(nodeid: str, new: Iterable[str]) -> str:
    """Say which new test it may be now: one with a name that is alike, or in another file the same.

    Names are compared without their files, since long paths make any two tests look alike.
    """
    file, _, name = nodeid.partition("::")
    best, found = _ALIKE, None
    for each in new:
        other, _, its_name = each.partition("::")
        alike = difflib.SequenceMatcher(None, name, its_name).ratio()
        if alike >= (best if other == file else 1.0):
            best, found = alike, each
    return f"; it may be {found} now" if found else ""
