"""Writing while a test runs: one live line below pytest's own progress, on a terminal only."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pytest_amp.report.status import status_line

REFRESH_S = 0.1


class LiveLine:
    """Shows where the experiment is. Without a terminal it shows nothing, and says what matters."""

    def __init__(self, config: pytest.Config, nodeid: str) -> None:
        self._terminal: Any = config.pluginmanager.get_plugin("terminalreporter")
        self._capture: Any = config.pluginmanager.get_plugin("capturemanager")
        self._nodeid = nodeid
        self._last = 0.0
        self._shown = False
        # Asked of pytest, since the file itself is no terminal while its output is captured.
        self._live = bool(getattr(self._terminal, "isatty", False))
        self._quiet = config.get_verbosity() < 0

    def show(self, progress: Any) -> None:
        """Redraw the line, at most ten times a second."""
        now = time.monotonic()
        if not self._live or self._quiet or now - self._last < REFRESH_S:
            return
        self._last = now
        self._shown = True
        self._draw(
            status_line(
                self._nodeid,
                progress.phase,
                progress.arm,
                progress.step,
                progress.total,
                progress.estimate,
                self._terminal._tw.fullwidth,
            )
        )

    def say(self, text: str) -> None:
        """Print a sentence that the user must have before the test is over."""
        if self._terminal is None:
            return
        self.clear()
        self._write(f"\n{self._nodeid}: {text}\n")

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            self._draw("")
            self._shown = False

    def _draw(self, text: str) -> None:
        """On the line below, and back to the column at which pytest's own dots go on."""
        column = self._terminal._tw.width_of_current_line + 1
        self._write(f"\n\x1b[2K{text}\x1b[1A\x1b[{column}G")

    def _write(self, text: str) -> None:
        file = self._terminal._tw._file
        if self._capture is None:
            file.write(text)
            file.flush()
            return
        with self._capture.global_and_fixture_disabled():
            file.write(text)
            file.flush()
