"""Give each amp test's figures to pytest's JUnit file, as properties of its test case.

They travel as the test's ``user_properties``, as those of pytest's `record_property` do. So an
xdist worker sends them to the controller, and other reporters find them as well.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_amp import units
from pytest_amp.results.explanation import in_order
from pytest_amp.results.report import AmpReport

PREFIX = "amp."
_GIVEN = pytest.StashKey[list[tuple[str, object]]]()


def properties(report: AmpReport) -> Iterator[tuple[str, str]]:
    """Yield a test's properties by name. A figure that is not known has none.

    The speedup, its interval's bounds ``low`` and ``high``, ``memory_reduction``, ``loss_diff`` and
    ``coverage`` are plain numbers, in the units that `AmpReport` has them in. ``findings`` are the
    codes of the findings that are not suppressed, the most telling one first, with spaces between.
    """
    value, low, high = _speedup(report)
    figures = {
        "speedup": value,
        "low": low,
        "high": high,
        "memory_reduction": report.memory_reduction,
        "loss_diff": report.loss_diff,
        "coverage": report.coverage,
    }
    yield f"{PREFIX}verdict", report.verdict
    for name, figure in figures.items():
        if figure is not None:
            yield f"{PREFIX}{name}", units.number(figure)
    if codes := dict.fromkeys(finding.code for finding in in_order(report)):
        yield f"{PREFIX}findings", " ".join(codes)


def _speedup(report: AmpReport) -> tuple[float | None, float | None, float | None]:
    found = report.speedup
    return (None, None, None) if found is None else (found.value, found.low, found.high)


def add(item: pytest.Item, report: pytest.TestReport, amp: AmpReport) -> None:
    """Add a test's properties to pytest's item and report; those of an earlier attempt go.

    pytest's JUnit file takes them from the report on the teardown, which gets them from the item.
    """
    earlier = item.stash.get(_GIVEN, ())
    item.user_properties[:] = [each for each in item.user_properties if each not in earlier]
    given: list[tuple[str, object]] = [*properties(amp)]
    item.stash[_GIVEN] = given
    item.user_properties += given
    report.user_properties = [*item.user_properties]
