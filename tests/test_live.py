"""The live status line: on a terminal it says where a long test is, elsewhere it is not there."""

from __future__ import annotations

import re
import sys

import pytest

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
def test_on_a_terminal_one_line_tells_test_phase_arm_and_step(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SLOW)
    child = pytester.spawn_pytest("--amp-static -p no:cacheprovider", expect_timeout=120)
    child.expect(r"test_slow  parity, amp, \d+ of 20")
    child.expect(r"test_slow  parity, fp32, \d+ of 20")
    child.expect("1 passed")


@terminal
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
