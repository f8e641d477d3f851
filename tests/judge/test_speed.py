"""What a block alone says beside pairs by turns."""

from __future__ import annotations

import random

import pytest

from pytest_amp.judge.speed import otherwise_alone
from pytest_amp.observations import Timing


def timed(alone_s: tuple[float, float] | None, pairs: int = 20, noise: float = 0.03) -> Timing:
    draw = random.Random(0)
    return Timing(
        tuple(0.02 * draw.lognormvariate(0, noise) for _ in range(pairs)),
        tuple(0.01 * draw.lognormvariate(0, noise) for _ in range(pairs)),
        4, "decided", 1.0, alone_s=alone_s,
    )  # fmt: skip


def test_another_speedup_alone_is_told_with_all_four_times() -> None:
    said = otherwise_alone(timed((0.02, 0.005)))
    assert said is not None
    assert said.startswith("alone and behind a pause, the arms show 4.00x, and 1.98x by turns")
    assert "a step took fp32 20.0 ms (by turns 20.0 ms) and amp 5.00 ms (by turns 10" in said
    assert "caches, clocks or memory" in said


@pytest.mark.parametrize(
    "alone_s",
    [
        pytest.param(None, id="nothing was timed alone"),
        pytest.param((0.02, 0.01), id="as by turns"),
        pytest.param((0.04, 0.02), id="both slower"),
        pytest.param((0.0205, 0.0095), id="within the noise"),
        pytest.param((0.0, 0.0), id="a clock that stands still"),
    ],
)
def test_what_is_as_by_turns_is_not(alone_s) -> None:
    assert otherwise_alone(timed(alone_s)) is None


def test_in_much_noise_one_block_says_nothing() -> None:
    assert otherwise_alone(timed((0.02, 0.007), noise=0.3)) is None


def test_of_few_pairs_nothing_is_said() -> None:
    assert otherwise_alone(timed((0.02, 0.005), pairs=5)) is None
