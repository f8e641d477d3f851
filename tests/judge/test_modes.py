"""Which arm sits in modes, for how long, and what to try."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from pytest_amp.judge import modes
from pytest_amp.observations import Machine, Timing


def timed(fp32, amp, pair_s: float = 0.05, **machine: object) -> Timing:
    return Timing(
        tuple(fp32), tuple(amp), 4, "budget", pair_s * len(amp), machine=Machine(**machine)
    )


def steady(pairs: int, step_s: float, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [step_s * draw.lognormvariate(0, 0.01) for _ in range(pairs)]


def in_modes(pairs: int, low_s: float, high_s: float, lasts: int) -> list[float]:
    return [
        each * (high_s / low_s if index // lasts % 2 else 1)
        for index, each in enumerate(steady(pairs, low_s, seed=1))
    ]


@pytest.mark.parametrize("lasts", [5, 10])
def test_an_arm_in_two_modes_is_told_with_both_and_how_long_they_last(lasts) -> None:
    found = modes.found(timed(steady(60, 0.02), in_modes(60, 0.005, 0.011, lasts)))
    assert found.arm == "amp"
    assert found.levels_s == pytest.approx((0.005, 0.011), rel=0.02)
    assert found.pairs == lasts
    assert found.lasts_s == pytest.approx(0.05 * lasts)
    assert str(found).startswith("a step of the amp arm takes ")
    assert str(found).endswith(f" ms, for about {lasts} pairs ({50 * lasts} ms) at a time")


def test_it_is_the_arm_that_the_ratios_follow() -> None:
    found = modes.found(timed(in_modes(60, 0.02, 0.03, 6), steady(60, 0.005)))
    assert found.arm == "fp32"


def test_what_slows_both_arms_alike_is_neither_arms() -> None:
    both = in_modes(60, 0.02, 0.03, 6)
    amp = [each / 2 * own for each, own in zip(both, in_modes(60, 1.0, 1.3, 10), strict=True)]
    assert modes.found(timed(both, amp)).arm == "amp"


def test_a_drift_has_no_two_levels() -> None:
    drift = [0.01 * (1 + index / 60) for index in range(60)]
    found = modes.found(timed(steady(60, 0.02), drift))
    assert (found.arm, found.levels_s) == ("amp", None)
    assert str(found).startswith("amp blocks keep a speed for about 30 pairs")


def test_equal_times_are_no_error() -> None:
    assert modes.found(timed([0.02] * 10, [0.01] * 10)).levels_s is None


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ({"threads": 2}, "OMP_NUM_THREADS=1"),
        ({"threads": 1}, "taskset -c 0"),
        ({"threads": 8, "device_type": "cuda"}, "nvidia-smi -lgc"),
        ({"threads": 8, "device_type": "xpu"}, "lock the GPU's clocks, or raise max_time"),
    ],
)
def test_the_remedy_fits_the_machine(machine, said) -> None:
    assert said in modes.remedy(timed([0.02], [0.01], **machine))


def test_without_a_record_of_the_machine_there_is_a_remedy_too() -> None:
    assert "taskset" in modes.remedy(replace(timed([0.02], [0.01]), machine=None))


def test_pairs_are_as_good_as_fewer_if_they_follow_each_other() -> None:
    assert modes.as_good_as((1.5,) * 40) == 40
    assert modes.as_good_as(([1.0] * 10 + [1.4] * 10) * 2) < 5
