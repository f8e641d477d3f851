"""Find the tests that a baseline has and a run has not, whose gates would vanish in silence."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator

from pytest_amp.results.report import AmpReport

# How alike two ids have to be for one to be taken for the other's new name.
_ALIKE = 0.8


def missing(reports: Iterable[AmpReport], baseline: Collection[str], run: str) -> Iterator[str]:
    """Yield a sentence for each test that the baseline measured and this run did not.

    Args:
        reports: the run's reports.
        baseline: the ids of the tests that were measured there.
        run: what to call the baseline.
    """
    now: dict[str, AmpReport] = {report.nodeid: report for report in reports}
    new = [nodeid for nodeid in now if nodeid not in baseline]
    for nodeid in dict.fromkeys(baseline):
        report = now.get(nodeid)
        if report is None:
            named = difflib.get_close_matches(nodeid, new, 1, _ALIKE)
            renamed = f"; it may be {named[0]} now" if named else ""
            yield f"{nodeid} was measured in {run}, and did not run{renamed}"
        elif report.verdict == "skipped":
            reason = f" ({report.skip_reason})" if report.skip_reason else ""
            yield f"{nodeid} was measured in {run}, and was skipped{reason}"
