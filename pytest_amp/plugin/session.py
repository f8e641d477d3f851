"""One pytest run: gathers every test's report, and hands them to the reporters at the end.

Reports travel on pytest's own test reports, as plain JSON, so the controller of an xdist run sees
the same as a run in one process does.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_amp.plugin import options, output_files
from pytest_amp.plugin.options import LEVELS
from pytest_amp.plugin.output_files import own_path, require_writable
from pytest_amp.provenance import now, run_of
from pytest_amp.settings import table as settings

if TYPE_CHECKING:
    from pytest_amp.plugin.benchmark import Keeper
    from pytest_amp.results.report import AmpReport


# Under which name an xdist worker sends home what it could not read of the baselines.
_CARGO = "amp_unread"
_MOST_UNREAD = 3


class Session:
    """Registered as a plugin of its own, so that its hooks know which run they belong to."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.reports: list[AmpReport] = []
        self._unread: dict[str, None] = {}
        self._unasked: list[str] = []
        self._written: list[Path] = []
        self._started = now()
        self._worker = hasattr(config, "workerinput")
        json_path = config.getoption("amp_json")
        self._json = None if json_path is None or self._worker else own_path(json_path)
        if self._json is not None:
            require_writable("--amp-json", self._json)
            given = settings.resolve([*config.stash[LEVELS]])
            if given.compare is not None:
                from pytest_amp.plugin import compare

                compare.refuse_overwriting(config, given, self._json)
        html_path = config.getoption("amp_html")
        self._html = None if html_path is None or self._worker else own_path(html_path)
        if self._html is not None:
            require_writable("--amp-html", self._html)
            from pytest_amp.render import html

            if not html.available():
                raise pytest.UsageError(f"--amp-html: {html.MISSING}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = getattr(report, "amp", None)
        if data is not None:
            from pytest_amp.results.report import AmpReport

            self.reports.append(AmpReport.from_dict(data))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._worker or not (self.reports or self._unasked):
            return
        from pytest_amp.render.terminal import not_gated, summary

        writer = terminalreporter._tw
        verbosity = self.config.get_verbosity()
        terminalreporter.section("pytest-amp")
        lines = summary(self.reports, writer.fullwidth, verbosity, self._hidden())
        for line in (*lines, *not_gated(self._unasked, self._strict, writer.fullwidth)):
            for span in line:
                writer.write(span.text, **dict.fromkeys(span.markup, True))
            writer.line()
        for note in self._notes():
            writer.line(f"note: {note}")
        for path in self._written:
            writer.line(f"written: {path}")

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        if keeper := self._keeper():
            keeper.name_run(output_json)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self._unread.update(dict.fromkeys(getattr(node, "workeroutput", {}).get(_CARGO, ())))

    @pytest.hookimpl(trylast=True)  # behind pytest-benchmark, which has saved by then
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.reports:
            from pytest_amp.plugin import compare

            self._unread.update(dict.fromkeys(compare.finished(self.config)))
        if self._worker:
            self.config.workeroutput[_CARGO] = list(self._unread)  # type: ignore[attr-defined]
        if keeper := self._keeper():
            keeper.hide_table()
            keeper.look_again()
            for problem in keeper.problems:
                session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
                sys.stderr.write(f"\npytest-amp: {problem}\n")
        self._see_what_was_unasked(session)
        self.write_reports(session)

    def _see_what_was_unasked(self, session: pytest.Session) -> None:
        """A run whose gates were asked of no test is told, and fails where an answer is a must."""
        option = self.config.option
        if self._worker or option.collectonly or option.setuponly or option.setupplan:
            return
        if not self.reports and not options.gates_by_name(self.config):
            return
        from pytest_amp.judge.unasked import unasked

        given, static = options.given_gates(self.config)
        self._unasked = list(unasked(self.reports, given, static=static))
        if self._unasked and self._strict and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @property
    def _strict(self) -> bool:
        """Whether a gate without an answer fails the run."""
        return "unmeasured" in settings.resolve([*self.config.stash[LEVELS]]).strict

    def write_reports(self, session: pytest.Session) -> None:
        """Write what was asked for, once, whatever became of other plugins' reports."""
        if session.config.option.collectonly:
            return
        for option, write in (("--amp-json", self._write_json), ("--amp-html", self._write_html)):
            try:
                write()
            except OSError as error:
                session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
                sys.stderr.write(f"\npytest-amp: {option} could not be written: {error}\n")
        self._json = self._html = None

    def _write_json(self) -> None:
        if self._json is not None:
            output_files.write_json(self._json, self.reports, self.run(), self._unasked)
            self._written.append(self._json)

    def _write_html(self) -> None:
        if self._html is not None:
            output_files.write_html(self._html, self.config, self.reports, self.run())
            self._written.append(self._html)

    def _hidden(self) -> dict[str, int]:
        """Per setting given on the command line: how many tests' markers hid it."""
        _, (_, cli), _ = self.config.stash[LEVELS]
        tests = {report.nodeid: report.settings for report in self.reports}
        return Counter(
            name
            for given in tests.values()
            for name, setting in given.items()
            if name in cli and setting.source == "marker" and not settings.BY_NAME[name].merges
        )

    def _notes(self) -> Iterator[str]:
        """What could not be read of the stored runs, and what became of saving."""
        from pytest_amp.plugin import benchmark

        yield from list(self._unread)[:_MOST_UNREAD]
        if (left := len(self._unread) - _MOST_UNREAD) > 0:
            yield f"and {left} more that can't be read: `pytest-amp history` names them all"
        if keeper := self._keeper():
            yield from keeper.notes
        if why := benchmark.why_nothing_is_saved(self.config):
            yield why

    def _keeper(self) -> Keeper | None:
        if not self.reports:
            return None
        from pytest_amp.plugin import benchmark

        return benchmark.keeper_of(self.config)

    @functools.cache  # noqa: B019 - a run has one session
    def run(self) -> dict[str, Any]:
        """What identifies this run of pytest."""
        return run_of(self.config.rootpath, self._started, self.config.invocation_params.args)
