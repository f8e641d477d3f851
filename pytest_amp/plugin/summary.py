"""Write the section about the amp tests at the end of pytest's output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pytest

from pytest_amp.plugin.options import LEVELS
from pytest_amp.settings import table as settings

if TYPE_CHECKING:
    from pytest_amp.results.gaps import Gap
    from pytest_amp.results.report import AmpReport

_MOST_UNREAD = 3


def hidden_settings(config: pytest.Config, reports: Sequence[AmpReport]) -> dict[str, int]:
    """Count the tests whose markers hide a setting of the command line, by setting."""
    _, (_, cli), _ = config.stash[LEVELS]
    tests = {report.nodeid: report.settings for report in reports}
    return Counter(
        name
        for given in tests.values()
        for name, setting in given.items()
        if name in cli and setting.source == "marker" and not settings.BY_NAME[name].merges
    )


def notes(config: pytest.Config, unread: Sequence[str]) -> Iterator[str]:
    """Yield notes on stored runs that could not be read, and on the saving of this one."""
    from pytest_amp.plugin import benchmark

    yield from unread[:_MOST_UNREAD]
    if (left := len(unread) - _MOST_UNREAD) > 0:
        yield f"and {left} more that can't be read: `pytest-amp history` names them all"
    if keeper := benchmark.keeper_of(config):
        yield from keeper.notes
    if why := benchmark.why_nothing_is_saved(config):
        yield why


def _told(reporter: pytest.TerminalReporter) -> frozenset[str]:
    """Return the ids of the tests whose failure pytest has written out in full.

    That is where it writes failures at all, and the message is the explanation of a verdict.
    """
    if reporter.config.option.tbstyle in ("no", "line"):
        return frozenset()
    return frozenset(
        report.amp_told
        for report in reporter.getreports("failed")
        if report.when == "call" and hasattr(report, "amp_told")
    )


def write(
    reporter: pytest.TerminalReporter,
    reports: Sequence[AmpReport],
    gaps: Sequence[Gap],
    footer: Sequence[str],
) -> None:
    """Write the section: the table, each test's details, what has no answer, a footer.

    Args:
        reporter: pytest's reporter, which owns the terminal.
        reports: the reports of the tests.
        gaps: what the run did not answer.
        footer: the last lines.
    """
    from pytest_amp.render.terminal import missed, summary

    config, writer = reporter.config, reporter._tw
    hidden = hidden_settings(config, reports)
    reporter.section("pytest-amp")
    for line in (
        *summary(reports, writer.fullwidth, config.get_verbosity(), hidden, _told(reporter)),
        *missed(gaps, writer.fullwidth),
    ):
        for span in line:
            writer.write(span.text, **dict.fromkeys(span.markup, True))
        writer.line()
    for text in footer:
        writer.line(text)
