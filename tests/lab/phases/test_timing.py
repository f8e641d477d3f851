"""Timing on a simulated clock: the blocks, their order and number, and what they lead to."""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections import Counter
from itertools import pairwise

import pytest
import torch
from torch.amp import GradScaler
from torch.optim.optimizer import _global_optimizer_post_hooks as _post_hooks
from torch.optim.optimizer import _global_optimizer_pre_hooks as _pre_hooks

from pytest_amp.judge import sequential
from pytest_amp.lab.machine.contention import Counters
from pytest_amp.lab.machine.device import Device
from pytest_amp.lab.phases import timing
from pytest_amp.lab.phases.timing import LEAST_BLOCK_S, Plan
from pytest_amp.lab.scaling.scaler import AmpScaler
from pytest_amp.results.values import Estimate
from tests.helpers.lab import SimulatedDevice, measure, workbench

TEN_TO_FIVE = (0.010, 0.005)


def pairs(number, warmup=3):
    return Plan(warmup, lambda timed: "done" if len(timed.ratios) >= number else None)


def timed(device, setup, plan, seed=0):
    return timing.run(workbench(setup, device=device, seed=seed), plan)


def test_each_block_begins_with_one_untimed_step_and_is_synchronized_at_both_edges() -> None:
    device = SimulatedDevice()
    run = timed(device, device.steps(0.020, 0.020), pairs(3, warmup=0))
    assert run.block_steps == 1
    letters = {"now": "|", "synchronize": "s", "fp32": "x", "amp": "x"}
    story = "".join(letters[event] for event in device.events)
    # one untimed step, wait, read the clock, k timed ones, wait, read the clock
    assert story.count("xs|xs|") == 2 + 2 * 3  # one pair to calibrate, three that count
    assert "x" not in story.replace("xs|xs|", "")


def test_both_arms_are_warmed_up_before_anything_is_timed() -> None:
    device = SimulatedDevice()
    timed(device, device.steps(0.020, 0.020), pairs(1, warmup=5))
    before = device.events[: device.events.index("now")]
    assert before == ["fp32"] * 5 + ["synchronize"] + ["amp"] * 5 + ["synchronize"]


def test_a_block_of_the_faster_arm_is_at_least_20_ms_long() -> None:
    for fastest_s in (1e-5, 3e-4, 0.004, 0.0199, 0.05):
        device = SimulatedDevice()
        run = timed(device, device.steps(2 * fastest_s, fastest_s), pairs(1))
        assert LEAST_BLOCK_S == 0.020
        assert run.block_steps * fastest_s >= LEAST_BLOCK_S
        assert run.block_steps * fastest_s <= max(2 * LEAST_BLOCK_S, fastest_s)


def test_a_step_that_takes_no_time_ends_the_calibration_too() -> None:
    device = SimulatedDevice()
    run = timed(device, device.steps(1e-9, 1e-9), pairs(1))
    assert run.block_steps == timing.MOST_BLOCK_STEPS


def test_the_arms_alternate_in_pairs_whose_order_is_random_and_repeats_by_seed() -> None:
    def firsts(seed):
        device = SimulatedDevice()
        timed(device, device.steps(0.020, 0.020), pairs(60, warmup=0), seed)
        order = [arm for arm in device.events if arm in ("fp32", "amp")][4::4]  # after calibration
        both = [arm for arm in device.events if arm in ("fp32", "amp")][4::2]
        assert all({a, b} == {"fp32", "amp"} for a, b in zip(both[::2], both[1::2], strict=True))
        return order

    order = firsts(0)
    assert 15 < order.count("fp32") < 45
    assert sum(a != b for a, b in pairwise(order)) > 10  # not one arm always first, nor by turns
    assert sum(a == b for a, b in pairwise(order)) > 10
    assert firsts(0) == order
    assert firsts(1) != order


def test_drift_common_to_both_arms_does_not_move_the_speedup() -> None:
    device = SimulatedDevice()
    plain = device.steps(*TEN_TO_FIVE)

    def setup(arm):
        step = plain(arm)

        def slower_and_slower():
            began = device.time_s
            loss = step()
            device.time_s += 0.3 * began * (device.time_s - began)
            return loss

        return slower_and_slower

    run = timed(device, setup, pairs(60))
    assert run.fp32_step_s[-1] > 1.3 * run.fp32_step_s[0]
    assert statistics.median(run.ratios) == pytest.approx(2, rel=0.1)


def test_times_are_seconds_per_step() -> None:
    device = SimulatedDevice()
    run = timed(device, device.steps(0.004, 0.002), pairs(2))
    assert run.block_steps > 1
    assert run.fp32_step_s == pytest.approx([0.004] * 2)
    assert run.amp_step_s == pytest.approx([0.002] * 2)
    assert run.ratios == pytest.approx([2, 2])


# The story of a step that takes 10 ms in one arm and 5 ms in the other, at 3% noise.


@pytest.mark.parametrize("seed", range(5))
def test_ten_to_five_ms_passes_1_8(seed) -> None:
    device = SimulatedDevice()
    report = measure(device.steps(*TEN_TO_FIVE, 0.03, seed), device, static=False, min_speedup=1.8)
    assert report.verdict == "pass"
    assert report.gate("speedup").verdict == "pass"
    assert report.speedup.low < 2 < report.speedup.high


@pytest.mark.parametrize("seed", range(5))
def test_ten_to_five_ms_fails_2_2(seed) -> None:
    device = SimulatedDevice()
    report = measure(device.steps(*TEN_TO_FIVE, 0.03, seed), device, static=False, min_speedup=2.2)
    assert report.verdict == "fail"
    assert report.gate("speedup").verdict == "fail"


def test_ten_to_five_ms_mostly_takes_twelve_pairs_at_most() -> None:
    def pairs(seed: int) -> int:
        device = SimulatedDevice()
        setup = device.steps(*TEN_TO_FIVE, 0.03, seed)
        return measure(setup, device, static=False, min_speedup=1.8).speedup.pairs

    assert statistics.median(map(pairs, range(15))) <= 12


def test_ten_to_five_ms_is_inconclusive_at_its_own_median() -> None:
    def verdict(seed):
        def run(wanted, seed):
            def stop(pairs):
                if wanted and sequential.decide(pairs.ratios, wanted, 0.01):
                    return "decided"
                return "budget" if pairs.elapsed_s >= 1.5 else None

            device = SimulatedDevice()
            return timed(device, device.steps(*TEN_TO_FIVE, 0.03, seed), Plan(3, stop), seed)

        own = statistics.median(run(None, seed).ratios)
        return sequential.decide(run(own, 1000 + seed).ratios, own, 0.01) or "inconclusive"

    verdicts = Counter(map(verdict, range(25)))
    assert verdicts["inconclusive"] > verdicts["pass"] + verdicts["fail"]


def test_an_inconclusive_speed_is_no_pass_and_no_fail_and_says_what_would_decide() -> None:
    device = SimulatedDevice()
    setup = device.steps(*TEN_TO_FIVE, 0.03)
    report = measure(setup, device, static=False, min_speedup=2.0, max_time=5)
    assert report.verdict == "inconclusive"
    assert "raise max_time" in report.gate("speedup").reason
    assert 5 <= device.time_s < 10


# Budgets.


def test_too_short_a_budget_is_told_before_timing_with_the_one_that_would_do() -> None:
    device = SimulatedDevice()
    said = []
    setup = device.steps(1.0, 0.5)

    def told(**given):
        from pytest_amp.experiment import run as experiment
        from pytest_amp.experiment.job import Job
        from pytest_amp.progress import Progress
        from pytest_amp.settings.resolved import resolve

        options = resolve([("cli", {"steps": 4, "min_speedup": 1.5, **given})])
        progress = Progress(say=lambda text: said.append((text, device.events.count("fp32"))))
        return experiment.run(Job("test", setup, device, options), progress)

    report = told(max_time=10)
    [(note, steps_before)] = said
    assert "max_time=10 s is too short" in note
    assert note in report.notes
    assert steps_before < device.events.count("fp32")
    assert report.gate("speedup").verdict == "inconclusive"
    enough = int(note.rpartition("max_time=")[2])
    assert told(max_time=enough).gate("speedup").verdict == "pass"
    assert len(said) == 1


def test_without_a_threshold_timing_stops_once_the_interval_is_narrow() -> None:
    device = SimulatedDevice()
    report = measure(device.steps(*TEN_TO_FIVE, 0.01), device, static=False, max_time=30)
    estimate = report.speedup
    assert (estimate.high - estimate.low) / 2 <= 0.02 * estimate.low
    assert device.time_s < 5


@pytest.mark.parametrize("noise", [0.03, 0.1])
@pytest.mark.parametrize("wanted", [None, 1.3])
def test_where_a_drop_is_gated_timing_goes_on_until_it_could_be_told(
    noise: float, wanted: float | None
) -> None:
    def timed(**given: object) -> Estimate:
        device = SimulatedDevice()
        setup = device.steps(*TEN_TO_FIVE, noise)
        report = measure(setup, device, static=False, min_speedup=wanted, max_time=200, **given)
        assert report.speedup is not None
        return report.speedup

    alone, compared = timed(), timed(compare_fail="speedup:4%")
    assert alone.pairs < compared.pairs
    assert compared.low is not None
    assert compared.high is not None
    assert compared.high - compared.low <= 2 * 0.04 / 4 * compared.low
    assert timed(compare_fail="memory:10%") == alone


def test_without_a_threshold_timing_takes_at_most_a_third_of_max_time() -> None:
    device = SimulatedDevice()
    report = measure(device.steps(*TEN_TO_FIVE, 0.5), device, static=False, max_time=12)
    estimate = report.speedup
    assert (estimate.high - estimate.low) / 2 > 0.02 * estimate.low
    spent = sum(report.fp32.step_times_s + report.amp.step_times_s) * (estimate.block_steps + 1)
    assert 3 < spent < 5
    assert report.gate("speedup").verdict == "not_gated"
    assert report.verdict == "pass"


# Steps that a GradScaler skips.


def scaled(device, overflows, durations=TEN_TO_FIVE, skipped_s=0.001):
    """Steps of a float16 arm that take hardly any time where `overflows(step)` has them skipped."""

    def setup(arm):
        param = torch.nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([param], lr=0.0)
        count = itertools.count()

        def step():
            overflow = arm.enabled and overflows(next(count))
            optimizer.zero_grad()
            loss = param.to(arm.dtype).mul(1.0).sum().float()
            arm.scaler.scale(loss * (math.inf if overflow else 1.0)).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            device.time_s += skipped_s if overflow else durations[arm.enabled]
            return 1.0

        return step

    return setup


def speed(device, setup, **given):
    """The speed gate of a float16 run, and the report."""
    options = {"min_speedup": 1.8, "dtype": "float16", "max_loss_diff": None, **given}
    report = measure(setup, device, static=False, **options)
    return report.gate("speedup"), report


def test_steps_that_are_all_skipped_are_no_speed() -> None:
    device = SimulatedDevice()
    gate, report = speed(device, scaled(device, lambda _: True), max_time=5)
    assert gate.verdict == "inconclusive"
    assert gate.value is None
    assert "skipped steps in" in gate.reason
    assert report.verdict == "inconclusive"
    assert report.speedup is None
    assert report.to_dict()["speedup"] is None
    ungated, _ = speed(device, scaled(device, lambda _: True), max_time=5, min_speedup=None)
    assert ungated.verdict == "not_gated"


def test_pairs_with_skipped_steps_are_left_out_and_the_rest_decides() -> None:
    device = SimulatedDevice()
    gate, report = speed(device, scaled(device, lambda step: step % 7 == 6), min_speedup=2.2)
    assert gate.verdict == "fail"
    assert report.speedup.value == pytest.approx(2)
    assert report.speedup.pair_ratios == pytest.approx([2] * report.speedup.pairs)
    [note] = report.notes
    assert "left out, because the GradScaler skipped steps in them" in note


def test_nothing_of_ours_is_in_a_timed_step_of_either_arm() -> None:
    methods = [(GradScaler, name) for name in ("scale", "step", "update")]
    methods += [(AmpScaler, name) for name in ("scale", "step", "update")]
    own = [vars(cls)[name] for cls, name in methods]
    device = SimulatedDevice()
    kinds = {"fp32": [], "amp": []}

    def setup(arm):
        step = scaled(device, lambda _: False, durations=(0.04, 0.02))(arm)

        def noting():
            mine = [vars(cls)[name] for cls, name in methods] == own
            kinds[arm.name].append(mine and not (_pre_hooks or _post_hooks))
            return step()

        return noting

    bench = workbench(setup, torch.float16, device)
    run = timing.run(bench, pairs(2, warmup=3))
    for seen in kinds.values():
        assert run.block_steps == 1
        assert seen[:9] == [False] * 5 + [True] * 4  # warm-up and calibration; two pairs


def test_the_warm_up_goes_on_while_the_scaler_looks_for_its_scale() -> None:
    device = SimulatedDevice()
    gate, report = speed(device, scaled(device, lambda step: step < 12), warmup=3)
    assert gate.verdict == "pass"
    assert not any("left out" in note for note in report.notes)


def test_an_arm_that_skips_now_and_then_too_often_to_be_decided_says_so() -> None:
    device = SimulatedDevice()
    setup = scaled(device, lambda step: step % 3 == 2)
    gate, _ = speed(device, setup, min_speedup=1.999, max_time=2)
    assert gate.verdict == "inconclusive"
    assert "skipped steps in" in gate.reason


# Memory that holds one arm only.


def crowded(device, room, durations=TEN_TO_FIVE):
    """A setup that runs out of memory where more than `room` arms are built at once."""
    alive = Counter()
    plain = device.steps(*durations)

    def setup(arm):
        if alive["now"] >= room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        alive["now"] += 1
        alive["most"] = max(alive["most"], alive["now"])
        arm.on_teardown(lambda: alive.subtract(["now"]))
        return plain(arm)

    return setup, alive


def test_arms_that_do_not_fit_together_are_timed_one_at_a_time_and_the_report_says_so() -> None:
    device = SimulatedDevice()
    setup, alive = crowded(device, room=1)
    report = measure(setup, device, static=False, min_speedup=1.8)
    assert report.verdict == "pass"
    assert alive["most"] == 1
    assert report.speedup.value == pytest.approx(2)
    assert any("did not fit in memory together" in note for note in report.notes)


def test_arms_that_fit_together_are_built_once_for_timing() -> None:
    device = SimulatedDevice()
    setup, alive = crowded(device, room=2)
    report = measure(setup, device, static=False, min_speedup=1.8)
    assert alive["most"] == 2
    assert report.notes == ()


def test_out_of_memory_in_a_step_while_both_are_there_falls_back_too() -> None:
    device = SimulatedDevice()
    plain = device.steps(*TEN_TO_FIVE)
    alive = Counter()

    def setup(arm):
        alive["now"] += 1
        arm.on_teardown(lambda: alive.subtract(["now"]))
        inner = plain(arm)

        def step():
            if alive["now"] > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return inner()

        return step

    run = timed(device, setup, pairs(2))
    assert run.one_resident
    assert alive["now"] == 0


def test_an_allocator_that_had_to_give_back_its_cache_counts_as_out_of_memory() -> None:
    """What it then does to find room is no part of a step that runs alone."""
    device = SimulatedDevice()
    setup, alive = crowded(device, room=2)
    retries = itertools.count()
    device.allocation_retries = lambda: next(retries) // 5 if alive["now"] > 1 else 0
    report = measure(setup, device, static=False, min_speedup=1.8)
    assert report.verdict == "pass"
    assert any("did not fit in memory together" in note for note in report.notes)


def test_out_of_memory_in_an_arm_that_is_alone_is_the_error_with_the_arm_named() -> None:
    device = SimulatedDevice()
    setup, _ = crowded(device, room=0)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        measure(setup, device, static=False, min_speedup=1.8)
    assert "setup of the amp arm" in "".join(caught.value.__notes__)


def test_an_error_that_is_not_about_memory_is_raised_at_once() -> None:
    device = SimulatedDevice()
    builds = Counter()

    def setup(arm):
        builds[arm.name] += 1

        def step():
            raise ValueError("a bug of the user's")

        return step

    with pytest.raises(ValueError, match="a bug of the user's"):
        timed(device, setup, pairs(2))
    assert builds == {"fp32": 1, "amp": 1}


@pytest.mark.parametrize("waits", [False, True], ids=["its caches are cold", "its thread waits"])
def test_a_step_that_is_slower_behind_a_pause_is_told_unless_its_thread_waited(
    monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    device, waited_s = SimulatedDevice(), 0.0
    behind_a_pause = False

    def pause(*_: object) -> None:
        nonlocal behind_a_pause
        behind_a_pause = True

    def setup(arm):
        def step() -> float:
            nonlocal waited_s
            device.time_s += 0.01
            if behind_a_pause and arm.enabled:
                device.time_s += 0.01
                waited_s += 0.01 * waits
            return 1.0

        return step

    def counters(_: Device) -> Counters:
        return Counters(device.time_s, 0.0, None, None, {"7": waited_s}, None, None, None, None)

    monkeypatch.setattr(Device, "pause", pause)
    monkeypatch.setattr(Device, "counters", counters)
    notes = measure(setup, device, static=False, min_speedup=0.8).notes
    told = [note for note in notes if note.startswith("alone and behind a pause, the arms show")]
    assert len(told) == (not waits)


def test_a_profile_function_is_noted() -> None:
    device = SimulatedDevice()
    plain = measure(device.steps(0.02, 0.01), device, static=False, steps=2)
    former = sys.getprofile()
    sys.setprofile(lambda *_: None)
    try:
        profiled = measure(device.steps(0.02, 0.01), device, static=False, steps=2)
    finally:
        sys.setprofile(former)
    assert not any("profile function" in note for note in plain.notes)
    assert any("profile function" in note for note in profiled.notes)
