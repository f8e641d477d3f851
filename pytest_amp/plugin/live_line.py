"""Show the progress of a running test, on one live line below pytest's own progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from pytest_amp import units
from pytest_amp.render.text import ascii_only, cut, shorten

REFRESH_S = 0.1
# Without a terminal, write a line after this time, and again whenever the time has doubled.
SILENCE_S = 30.0


class LiveLine:
    """Shows where an experiment is.

    Without a terminal, as in a CI log, it writes a whole line now and then instead.

    Args:
        config: pytest's configuration.
        nodeid: the test.
        clock: returns the time in seconds.
    """

    def __init__(
        self, config: pytest.Config, nodeid: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._terminal: Any = config.pluginmanager.get_plugin("terminalreporter")
        self._capture: Any = config.pluginmanager.get_plugin("capturemanager")
        self._nodeid = nodeid
        self._clock = clock
        self._began = clock()
        self._silent_until_s = SILENCE_S
        self._last = 0.0
        self._shown = False
        # Ask pytest, because the file itself is not a terminal while output is captured.
        self._live = bool(getattr(self._terminal, "isatty", False))
        self._quiet = self._terminal is not None and config.get_verbosity() < 0

    def show(self, progress: Any) -> None:
        """Redraw the line, at most ten times a second, or report if there is no terminal."""
        now = self._clock()
        if not self._live:
            self._report(progress, now - self._began)
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

    def _report(self, progress: Any, elapsed_s: float) -> None:
        """Write a line to a log, ever more rarely, so that a long test does not seem to hang."""
        if elapsed_s < self._silent_until_s:
            return
        while self._silent_until_s <= elapsed_s:
            self._silent_until_s *= 2
        step = f"step {progress.step}" if progress.step is not None else None
        of = f"{step} of {progress.total}" if step and progress.total is not None else step
        each = f"{units.duration(progress.step_s)} a step" if progress.step_s else None
        after = f"after {units.duration(elapsed_s)}"
        parts = (progress.phase, progress.arm, of, each, progress.estimate, after)
        line = ", ".join(part for part in parts if part)
        self.say(f"{line}; {progress.why_slow}" if progress.why_slow else line)

    def say(self, text: str) -> None:
        """Print a sentence that the user should read before the test is over."""
        if self._terminal is None:
            return
        self.clear()
        self._write(f"\n{self._nodeid}: {text}\n")

    def clear(self) -> None:
        """Erase the line."""
        if self._shown:
            self._draw("")
            self._shown = False

    def _draw(self, text: str) -> None:
        """Write on the line below, and return to the column where pytest's own dots go on."""
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


_LEAST_NAME = 16


def status_line(
    nodeid: str,
    phase: str | None,
    arm: str | None,
    done: int | None,
    total: int | None,
    estimate: str | None,
    width: int,
) -> str:
    """Return what runs now, in at most `width` characters of ASCII and without a line break.

    It looks like ``tests/test_vit.py::test_vit  timing, amp, 12 of 20, 1.52x [1.48, 1.55]``. If
    there is too little room, the node id is shortened first.

    Args:
        nodeid: the test.
        phase: the phase of the experiment.
        arm: the arm that runs; None if both take part.
        done: how many steps are done.
        total: how many there are in all; None if that is not known yet.
        estimate: the speedup so far, as text; None before the first pair.
        width: the width of the terminal.
    """
    count = "" if done is None else str(done) if total is None else f"{done} of {total}"
    words = ascii_only(", ".join(part for part in (phase, arm, count, estimate) if part))
    name = shorten(nodeid, max(width - len(words) - 2, _LEAST_NAME))
    return cut(f"{name}  {words}".rstrip(), width)
