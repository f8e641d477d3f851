"""What a fresh process runs: one test alone, with the options of the run that asks for it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_amp.experiment.processes import PLACE, REPORT
from pytest_amp.plugin import measuring

if TYPE_CHECKING:
    from pytest_amp.progress import Progress

# The options of pytest, of this plugin and of pytest-benchmark that write what is kept.
REPORTS = (
    "amp_json", "amp_html", "amp_md", "amp_codequality", "amp_summary", "xmlpath", "htmlpath",
    "benchmark_json", "benchmark_save", "benchmark_autosave",
)  # fmt: skip
# These too, those that choose among tests, and those that stop for somebody to type.
_OFF = {
    **dict.fromkeys(
        (*REPORTS, "basetemp", "pastebin", "report_log", "json_report_file", "allure_report_dir",
         "splits", "group")
    ),
    **dict.fromkeys(
        ("usepdb", "trace", "lf", "failedfirst", "newfirst", "stepwise", "setupshow", "maxfail",
         "pyargs", "store_durations"),
        False,
    ),
    "log_file": os.devnull,  # else the ini file's would count
    "num_shards": 1,
    "shard_id": 0,
}  # fmt: skip
# Stands for a folder of its own among the arguments, if pytest's cache is in use at all.
CACHE = "cache_dir=@"
# This package is imported before pytest is, which is no fault of the user's.
IMPORTED_ALREADY = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"


def main() -> int:
    """Run a test alone.

    The last two arguments are the test and the folder for what it brings back, the others pytest's.
    """
    *arguments, test, folder = sys.argv[1:]
    held = os.dup(0)  # pytest puts something else in the place of the standard input
    threading.Thread(target=_end_with, args=(held,), daemon=True).start()
    with tempfile.TemporaryDirectory() as cache:
        given = [f"cache_dir={cache}" if word == CACHE else word for word in arguments]
        given += ["-W", IMPORTED_ALREADY]
        return int(pytest.main(given, plugins=[Alone(test, Path(folder))]))


def _end_with(held: int) -> None:
    """End this process and all that it started once nobody holds the pipe's other end."""
    while os.read(held, 1):
        pass
    if sys.platform != "win32":
        os.killpg(os.getpgid(0), signal.SIGKILL)
    os._exit(1)


class Alone:
    """The plugin that keeps the run to one test and itself, and writes down what it measured."""

    def __init__(self, test: str, folder: Path) -> None:
        self._test = test
        self._folder = folder
        self._shown = ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> None:
        """Take the one test, whatever else is named, and leave the project's files alone."""
        config.args = [self._test]
        for name, value in _OFF.items():
            if hasattr(config.option, name):
                setattr(config.option, name, value)
        config.option.amp_json = str(self._folder / REPORT)

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Write down where the experiment is, whenever another phase begins."""
        config.stash[measuring.WATCHER] = self._show

    def _show(self, progress: Progress) -> None:
        phase = progress.phase or ""
        if phase != self._shown:
            self._shown = phase
            with contextlib.suppress(OSError):  # whoever reads half of it looks again
                (self._folder / PLACE).write_text(json.dumps(phase), "utf-8")
