"""What a block alone says beside pairs by turns."""

from __future__ import annotations

import random

import pytest

from pytest_amp.judge.speed import otherwise_alone
from pytest_amp.observations import Disturbance, Machine, Timing


def timed(
    alone_s: tuple[float, float] | None,
    pairs: int = 20,
    noise: float = 0.03,
    waited: tuple[float, float] | None = None,
    others: float = 0.0,
) -> Timing:
    draw = random.Random(0)
    return Timing(
        tuple(0.02 * draw.lognormvariate(0, noise) for _ in range(pairs)),
        tuple(0.01 * draw.lognormvariate(0, noise) for _ in range(pairs)),
        4, "decided", 1.0, alone_s=alone_s,
        alone_taken=tuple(Disturbance(1.0, waited_s=each) for each in waited or ()),
        machine=Machine("cpu", 2, 2, 1, blocks=((Disturbance(1.0, others_s=others),) * pairs,) * 2),
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


@pytest.mark.parametrize(
    ("alone_s", "waited"),
    [
        pytest.param((0.02, 0.04), (0.0, 0.75), id="amp's block alone waited for a processor"),
        pytest.param((0.08, 0.01), (0.75, 0.0), id="fp32's did"),
        pytest.param((0.02, 0.04), (0.0, 0.99), id="without its waits it is beyond the other end"),
    ],
)
def test_what_a_thread_that_waited_explains_is_not_laid_on_caches(alone_s, waited) -> None:
    assert otherwise_alone(timed(alone_s)) is not None
    assert otherwise_alone(timed(alone_s, waited=waited)) is None


@pytest.mark.parametrize(
    "waited",
    [
        pytest.param((0.0, 0.0), id="none"),
        pytest.param((0.5, 0.5), id="both alike"),
        pytest.param((0.0, 0.1), id="too little to explain it"),
    ],
)
def test_other_waits_leave_the_note(waited) -> None:
    assert otherwise_alone(timed((0.02, 0.04), waited=waited)) is not None


@pytest.mark.parametrize(("others", "told"), [(0.0, True), (0.1, True), (0.9, False)])
def test_beside_a_busy_process_no_block_is_alone(others: float, told: bool) -> None:
    assert (otherwise_alone(timed((0.02, 0.04), others=others)) is not None) == told
