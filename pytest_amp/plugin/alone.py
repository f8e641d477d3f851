"""What a fresh process runs: one test alone, with the options of the run that asks for it."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_amp import files
from pytest_amp.experiment.processes import PLACE, REPORT
from pytest_amp.plugin import measuring

if TYPE_CHECKING:
    from pytest_amp.progress import Progress

# The options that write what is kept, choose among tests, or stop for somebody to type.
_OFF = {
    **dict.fromkeys(
        ("amp_html", "xmlpath", "htmlpath", "benchmark_json", "benchmark_save",
         "benchmark_autosave", "log_file", "basetemp", "pastebin")
    ),
    **dict.fromkeys(
        ("usepdb", "trace", "lf", "failedfirst", "newfirst", "stepwise", "setupshow", "maxfail"),
        False,
    ),
}  # fmt: skip


def main() -> int:
    """Run the test that the arguments name; the last one is the folder for what it brings back."""
    *arguments, folder = sys.argv[1:]
    held = os.dup(0)  # pytest puts something else in the place of the standard input
    threading.Thread(target=_end_with, args=(held,), daemon=True).start()
    with tempfile.TemporaryDirectory() as cache:
        given = [*arguments, "-o", f"cache_dir={cache}"]
        return int(pytest.main(given, plugins=[Alone(Path(folder))]))


def _end_with(held: int) -> None:
    """End this process and all that it started once nobody holds the pipe's other end."""
    while os.read(held, 1):
        pass
    if sys.platform != "win32":
        os.killpg(os.getpgid(0), signal.SIGKILL)
    os._exit(1)


class Alone:
    """The plugin that keeps the run to itself, and writes down what it measured and where it is."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> None:
        """Leave the project's files alone, and whoever reads them."""
        for name, value in _OFF.items():
            if hasattr(config.option, name):
                setattr(config.option, name, value)
        config.option.amp_json = str(self._folder / REPORT)

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Write down where the experiment is, whenever it moves on."""
        config.stash[measuring.WATCHER] = self._show
        self._shown = ""

    def _show(self, progress: Progress) -> None:
        place = ", ".join(part for part in (progress.phase, progress.arm) if part)
        if place != self._shown:
            self._shown = place
            files.write(self._folder / PLACE, json.dumps(place).encode())
