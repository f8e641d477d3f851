"""Gather the reports of a run's tests, and hand them to the reporters at the end.

Reports travel on pytest's own test reports, as plain JSON. So the controller of an xdist run sees
the same reports as a run in one process.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_amp.plugin import options
from pytest_amp.plugin.options import LEVELS
from pytest_amp.provenance import now, rank, run_of

if TYPE_CHECKING:
    from pytest_amp.plugin.benchmark import Keeper
    from pytest_amp.plugin.output_files import OutputFiles
    from pytest_amp.plugin.places import Outcome
    from pytest_amp.render.annotations import Mark
    from pytest_amp.results.gaps import Gap
    from pytest_amp.results.report import AmpReport


# An xdist worker sends what is left of its baselines to the controller under this key.
_CARGO = "amp_baselines"

# A report of another one is xdist's own, about a test during which the worker died.
_PHASES = ("setup", "call", "teardown")

_RAN_TO_ITS_END = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)


class Session:
    """The reports of one run.

    It is registered as a plugin of its own, so that its hooks know which run they belong to.

    Attributes:
        config: pytest's configuration.
        reports: the reports of the tests so far.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.reports: list[AmpReport] = []
        self._outcomes: dict[str, Outcome] = {}
        self._running: dict[str, tuple[str, str]] = {}  # by pytest's ids, what we call the tests
        self._once: dict[str, str] = {}  # what each test is called where it is not repeated
        self._unread: dict[str, None] = {}
        self._used: dict[str, None] = {}  # the files that baselines were read from
        self._gaps: list[Gap] = []
        self._started = now()
        self._shown = False
        self._worker = hasattr(config, "workerinput")
        self._files: OutputFiles | None = None
        option = config.option
        named = (option.amp_json, option.amp_html, option.amp_md, option.amp_codequality)
        if not self._worker and any(named):
            self._files = self._output_files()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the amp report that a test report carries, or that is missing: a worker died."""
        ids = getattr(report, "amp_ids", None)
        if ids is not None:
            self._running[report.nodeid] = ids
        data = getattr(report, "amp", None)
        if data is not None:
            from pytest_amp.results.report import AmpReport

            self._keep_report(AmpReport.from_dict(data), report)
        elif report.when not in _PHASES and report.nodeid in self._running:
            from pytest_amp.plugin import makereport

            nodeid, _ = self._running[report.nodeid]
            # If it had one already, the worker died in its teardown.
            self.reports = [each for each in self.reports if each.nodeid != nodeid]
            self._keep_report(makereport.crashed(nodeid, report), report)
        if report.when == "teardown":
            self._running.pop(report.nodeid, None)

    def _keep_report(self, amp: AmpReport, report: pytest.TestReport) -> None:
        from pytest_amp.plugin.places import Outcome

        self.reports.append(amp)
        self._outcomes[amp.nodeid] = Outcome.of(report)
        _, self._once[amp.nodeid] = self._running.get(report.nodeid, (amp.nodeid, amp.nodeid))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write our section of the summary."""
        self._shown = True
        if self._worker or not (self.reports or self._gaps):
            return
        from pytest_amp.plugin import places, summary

        notes = summary.notes(self.config, list(self._unread))
        footer = [f"note: {each}" for each in notes]
        footer += [f"written: {path}" for path in (self._files.written if self._files else ())]
        if not rank():
            footer += places.for_github(self._marks)
        summary.write(terminalreporter, self.reports, self._gaps, footer)

    def show_unasked(self) -> None:
        """Write our section where a reporter that replaces pytest's asks nobody for a summary."""
        plugins, name = self.config.pluginmanager, "terminalreporter"
        pytests = plugins.get_plugin("terminal")
        unwanted = plugins.is_blocked(name) or self.config.option.no_summary
        if pytests is None or plugins.has_plugin(name) or unwanted or self._shown or self._worker:
            return
        reporter = pytests.TerminalReporter(self.config, sys.stdout)
        for each in (self, plugins.get_plugin("amp-snapshot")):
            if each is not None:
                each.pytest_terminal_summary(reporter)

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        """Add what identifies this run to what pytest-benchmark saves."""
        if keeper := self._keeper():
            keeper.name_run(output_json)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Give an xdist worker the options of this run, for processes that it starts."""
        node.workerinput[options.COMMAND_LINE] = options.command_line(self.config)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take what an xdist worker sends at its end."""
        self._keep(*getattr(node, "workeroutput", {}).get(_CARGO, ((), ())))

    @pytest.hookimpl(trylast=True)  # after pytest-benchmark has saved
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Check what was saved, look for gates that no test was asked, and write the reports."""
        if self.reports:
            from pytest_amp.plugin import compare

            self._keep(*compare.finished(self.config))
        if self._worker:
            cargo = [list(self._unread), list(self._used)]
            self.config.workeroutput[_CARGO] = cargo  # type: ignore[attr-defined]
        if keeper := self._keeper():
            keeper.hide_table()
            keeper.look_again()
            for problem in keeper.problems:
                self._fail(session, problem)
        self._look_for_gaps(session)
        self.write_reports(session)

    def _keep(self, unread: Iterable[str], used: Iterable[str]) -> None:
        self._unread.update(dict.fromkeys(unread))
        self._used.update(dict.fromkeys(used))

    def _look_for_gaps(self, session: pytest.Session) -> None:
        """Note what the run did not answer; under ``--amp-strict`` that fails it."""
        option = self.config.option
        if self._worker or option.collectonly or option.setuponly or option.setupplan:
            return
        if not self.reports and not options.gates_by_name(self.config):
            return
        from pytest_amp.judge.unasked import unasked
        from pytest_amp.plugin import compare
        from pytest_amp.results.gaps import Gap

        given, static = options.given_gates(self.config)
        strict = options.of_session(self.config.stash[LEVELS], "strict")
        self._gaps = [
            Gap("unasked", text, "unmeasured" in strict)
            for text in unasked(self.reports, given, static=static)
        ]
        if session.exitstatus in _RAN_TO_ITS_END and not (session.shouldstop or session.shouldfail):
            missing = compare.missing(self.config, self.reports, self._once, self._used)
            self._gaps += [Gap("missing", text, "baseline" in strict) for text in missing]
        if any(gap.fails for gap in self._gaps) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def write_reports(self, session: pytest.Session) -> None:
        """Write the files that were asked for, once, even if another plugin has failed."""
        if self._worker or session.config.option.collectonly:
            return
        if self._files is None and (self.reports or self._gaps):
            self._files = self._output_files()  # the CI system may want a summary
        if self._files is None:
            return
        from pytest_amp.plugin.output_files import Seen

        def see() -> Seen:
            return Seen(self.reports, self.run(), self._gaps, self._marks)

        for problem in self._files.write(see):
            self._fail(session, problem)

    def _output_files(self) -> OutputFiles:
        from pytest_amp.plugin.output_files import OutputFiles

        return OutputFiles(self.config)

    @functools.cache  # noqa: B019 - a run has one session
    def _marks(self) -> list[Mark]:
        """Return what there is to say at lines of the project."""
        from pytest_amp.plugin import places

        return places.of_run(self.config, self.reports, self._outcomes)

    def _fail(self, session: pytest.Session, problem: str) -> None:
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
        sys.stderr.write(f"\npytest-amp: {problem}\n")

    def _keeper(self) -> Keeper | None:
        if not self.reports:
            return None
        from pytest_amp.plugin import benchmark

        return benchmark.keeper_of(self.config)

    @functools.cache  # noqa: B019 - a run has one session
    def run(self) -> dict[str, Any]:
        """Return what identifies this run of pytest."""
        return run_of(self.config.rootpath, self._started, self.config.invocation_params.args)
