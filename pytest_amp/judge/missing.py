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
    new = [nodeid for nodeid in now if nodeid not in baseline]
    for nodeid, run in baseline.items():
        report = now.get(nodeid)
        if report is None:
            comparable = len(new) * len(baseline) <= _MOST_COMPARED
            named = difflib.get_close_matches(nodeid, new, 1, _ALIKE) if comparable else []
            renamed = f"; it may be {named[0]} now" if named else ""
            yield f"{nodeid} was measured in {run}, and did not run{renamed}"
        elif report.verdict == "skipped":
            reason = f" ({report.skip_reason})" if report.skip_reason else ""
            yield f"{nodeid} was measured in {run}, and was skipped{reason}"
