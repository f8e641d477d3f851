"""The live status line: on a terminal it says where a long test is, in a log now and then."""

from __future__ import annotations

import io
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_amp.plugin.live_line import LiveLine
from pytest_amp.progress import Progress

SLOW = """
import time
import torch

def test_slow(amp_benchmark):
    def setup(arm):
        layer = torch.nn.Linear(4, 1)
        torch.optim.SGD(layer.parameters(), lr=0.1)
        x = torch.ones(2, 4)

        def step():
            time.sleep(0.05)
            with arm.autocast():
                return layer(x).float().mean()

        return step

    amp_benchmark(setup)
"""

terminal = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")


@terminal
@pytest.mark.slow
def test_on_a_terminal_one_line_tells_test_phase_arm_and_step(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SLOW)
    child = pytester.spawn_pytest("--amp-static -p no:cacheprovider", expect_timeout=120)
    child.expect(r"test_slow  parity, amp, \d+ of 20")
    child.expect(r"test_slow  parity, fp32, \d+ of 20")
    child.expect("1 passed")


@terminal
@pytest.mark.slow
def test_quiet_is_quiet(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SLOW)
    child = pytester.spawn_pytest("-q --amp-static -p no:cacheprovider", expect_timeout=120)
    child.expect("1 passed")
    assert b"parity" not in child.before


def test_without_a_terminal_there_is_none(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SLOW)
    result = pytester.runpytest("--amp-static")
    result.assert_outcomes(passed=1)
    assert not re.search(r"parity, amp|\x1b", result.stdout.str())


class Log:
    """A run whose output is no terminal, and a clock that is moved by hand."""

    def __init__(self) -> None:
        self.file = io.StringIO()
        self.now = 0.0
        writer = SimpleNamespace(_file=self.file, fullwidth=80, width_of_current_line=0)
        plugins = {"terminalreporter": SimpleNamespace(_tw=writer, isatty=False)}
        config: Any = SimpleNamespace(
            pluginmanager=SimpleNamespace(get_plugin=plugins.get), get_verbosity=lambda: 0
        )
        self.live = LiveLine(config, "test_it.py::test_slow", lambda: self.now)
        self.why_slow: str | None = None

    def at(self, seconds: float, step: int, step_s: float = 1.5) -> None:
        self.now = seconds
        self.live.show(
            SimpleNamespace(
                phase="parity",
                arm="amp",
                step=step,
                total=20,
                estimate=None,
                step_s=step_s,
                why_slow=self.why_slow,
            )
        )

    def lines(self) -> list[str]:
        return [line for line in self.file.getvalue().splitlines() if line]


def test_a_log_is_told_after_thirty_seconds_where_the_test_is() -> None:
    log = Log()
    log.at(29.9, 19)
    assert log.lines() == []
    log.at(30.1, 20)
    assert log.lines() == [
        "test_it.py::test_slow: parity, amp, step 20 of 20, 1.50 s a step, after 30.1 s"
    ]


def test_a_log_is_told_why_a_step_takes_long_where_that_is_known() -> None:
    log = Log()
    log.why_slow = "this CPU has no fast kernel for aten::mm"
    log.at(31, 3)
    (line,) = log.lines()
    assert line.endswith("after 31.0 s; this CPU has no fast kernel for aten::mm")


def test_a_log_is_told_ever_more_rarely() -> None:
    log = Log()
    for second in range(1000):
        log.at(second, 2)
    told = [float(line.rpartition("after ")[2].removesuffix(" s")) for line in log.lines()]
    assert told == [30, 60, 120, 240, 480, 960]


def test_a_step_that_takes_minutes_is_told_once_it_is_over() -> None:
    log = Log()
    log.at(1, 1)
    log.at(500, 2, step_s=499)
    log.at(501, 3, step_s=250)
    assert len(log.lines()) == 1


def test_a_short_test_says_nothing_in_a_log() -> None:
    log = Log()
    for step in range(1, 20):
        log.at(step, step)
    assert log.lines() == []


def test_what_a_step_takes_is_of_its_phase_and_arm_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("pytest_amp.progress.time.perf_counter", lambda: now)
    progress = Progress()
    for arm, step_s in (("amp", 4.0), ("fp32", 1.0)):
        for step in (1, 2, 3):
            progress.at("parity", arm, step, 20)
            now += step_s
        assert progress.step_s == step_s
    progress.at("inspection", "fp32")
    assert progress.step_s is None
