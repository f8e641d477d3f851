"""What other work took from the timed blocks, in words, and whether it made the verdict."""

from __future__ import annotations

import pytest

from pytest_amp.judge import contention, gates
from pytest_amp.judge.case import Limits
from pytest_amp.observations import Disturbance, GpuState, Machine, Timing
from pytest_amp.results.contention import Contention, Taken
from tests.helpers.observations import seen


def blocks(count: int, **each: object) -> tuple[Disturbance, ...]:
    return (Disturbance(wall_s=0.1, **each),) * count  # type: ignore[arg-type]


def timed(
    ratio: float = 1.5, fp32: object = (), amp: object = (), pairs: int = 20, **machine: object
) -> Timing:
    has = Machine(**{"cores": 2.0, "processors": 2, "threads": 2, "blocks": (fp32, amp), **machine})  # type: ignore[arg-type]
    return Timing((0.01 * ratio,) * pairs, (0.01,) * pairs, 4, "decided", 1.0, machine=has)


def busy(
    others: float,
    cores: float = 2.0,
    threads: int = 2,
    processors: int | None = None,
    **more: object,
) -> Contention:
    arms = {"amp": Taken(blocks=20, others=others, **more)}  # type: ignore[arg-type]
    return Contention("cpu", cores, processors or int(cores), threads, arms)


# What was taken.


def test_nobody_looked_where_nothing_was_timed() -> None:
    assert contention.of(None) is None
    assert contention.of(Timing((1.0,), (1.0,), 1, "decided", 1.0)) is None


def test_each_arms_blocks_are_summed_up() -> None:
    fp32 = blocks(20, preemptions=0, waited_s=0.001, others_s=0.1, stolen_s=0.0, pressure_s=0.05)
    amp = (*blocks(5, preemptions=3, waited_s=0.04), *blocks(15, preemptions=0, waited_s=0.0))
    found = contention.of(timed(fp32=fp32, amp=amp, gpu_processes=1))
    assert (found.cores, found.threads, found.gpu_processes) == (2.0, 2, 1)
    assert found.arms["fp32"].preempted == 0
    assert found.arms["fp32"].waited == pytest.approx(0.01)
    assert found.arms["fp32"].others == pytest.approx(1)
    assert found.arms["fp32"].pressure == pytest.approx(0.5)
    assert (found.arms["amp"].blocks, found.arms["amp"].preempted) == (20, 5)
    assert found.arms["amp"].waited == pytest.approx(0.1)
    assert found.arms["amp"].others is None


def test_ticks_of_single_blocks_even_out_and_no_sum_is_negative() -> None:
    ticks = tuple(Disturbance(0.01, others_s=seconds) for seconds in (-0.01, 0.01, 0.0, -0.01))
    found = contention.of(timed(fp32=ticks, amp=ticks[:2]))
    assert found.arms["fp32"].others == 0
    assert found.arms["amp"].others == 0


def test_a_gpus_clocks_are_told_by_their_median_and_what_held_them_back() -> None:
    gpu = (
        (GpuState(1980),) * 20,
        (*(GpuState(1400, ("its temperature",)),) * 14, *(GpuState(1980),) * 6),
    )
    found = contention.of(timed(gpu=gpu, device_type="cuda"))
    assert found.arms["fp32"].clock_mhz == 1980
    assert found.arms["amp"].clock_mhz == 1400
    assert found.arms["amp"].held_back == {"its temperature": 14}
    assert contention.cause(found) == (
        "the GPU's clocks were held back by its temperature (0 of 20 fp32 blocks, 14 of 20 amp "
        "blocks): cool it, give it power, or lock lower ones with nvidia-smi -lgc"
    )


# The cause, and the remedy.


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            busy(1.0),
            (
                "other processes keep 1.0 of 2 cores busy, and 2 threads wait for each other: "
                "set OMP_NUM_THREADS=1"
            ),
        ),
        (
            busy(2.6, cores=8, threads=8),
            (
                "other processes keep 2.6 of 8 cores busy, and 8 threads wait for each other: "
                "set OMP_NUM_THREADS=5"
            ),
        ),
        (
            busy(1.9, threads=1),
            "other processes keep 1.9 of 2 cores busy: stop them, or measure on another machine",
        ),
        (
            busy(20.0, cores=2.0, threads=32, processors=64),
            "32 threads share 2 cores and wait for each other: set OMP_NUM_THREADS=2",
        ),
        (
            busy(63.0, cores=2.0, threads=2, processors=64),
            (
                "other processes keep 63.0 of 64 cores busy, and 2 threads wait for each other: "
                "set OMP_NUM_THREADS=1"
            ),
        ),
        (
            busy(0.0, cores=2.0, threads=64),
            "64 threads share 2 cores and wait for each other: set OMP_NUM_THREADS=2",
        ),
        (
            busy(0.0, cores=1.5, threads=8, throttled=0.4),
            (
                "the container may use 1.5 cores, and was stopped in 40% of its quota's periods, "
                "since 8 threads want more: set OMP_NUM_THREADS=1"
            ),
        ),
        (
            busy(0.1, stolen=0.6),
            (
                "the hypervisor gives 0.6 of 2 cores to other machines: measure on a machine that "
                "shares none"
            ),
        ),
        (
            Contention("cuda", gpu_processes=1),
            "another process has the GPU open: give the test one of its own",
        ),
        (
            Contention("cuda", gpu_processes=3),
            "3 other processes have the GPU open: give the test one of its own",
        ),
    ],
)
def test_a_cause_is_one_sentence_with_its_remedy(found, said) -> None:
    assert contention.cause(found) == said


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(None, id="nobody looked"),
        pytest.param(Contention(), id="nothing is known"),
        pytest.param(busy(0.1), id="little"),
        pytest.param(busy(0.9, threads=1), id="one thread, and a processor for it"),
        pytest.param(busy(3.0, cores=8, threads=4), id="enough for all"),
        pytest.param(busy(0.0, throttled=0.001, threads=2), id="a quota that was touched"),
        pytest.param(busy(0.0, stolen=0.05), id="a little stolen"),
        pytest.param(busy(20.0, threads=1, processors=64), id="a quota on a busy host with room"),
        pytest.param(
            Contention("cuda", 2.0, 2, 64, {"amp": Taken(20, others=2.0)}),
            id="threads beside a GPU",
        ),
        pytest.param(
            Contention("cuda", arms={"amp": Taken(40, held_back={"its power cap": 1})}),
            id="one block at the power cap",
        ),
    ],
)
def test_there_is_no_cause_where_there_is_enough_for_all(found) -> None:
    assert contention.cause(found) is None


def test_preempted_blocks_are_told_by_arm_the_more_of_them_first() -> None:
    found = contention.of(
        timed(
            fp32=blocks(40, preemptions=0),
            amp=blocks(14, preemptions=2) + blocks(26, preemptions=0),
        )
    )
    assert contention.preempted(found) == (
        "in 14 of 40 amp blocks a thread was preempted, in none of fp32's"
    )
    both = contention.of(timed(fp32=blocks(40, preemptions=1), amp=blocks(30, preemptions=1)))
    assert contention.preempted(both) == (
        "in 40 of 40 fp32 blocks a thread was preempted, in 30 of 30 of amp's"
    )
    assert contention.preempted(contention.of(timed(fp32=blocks(4, preemptions=0)))) is None
    assert contention.preempted(contention.of(timed(fp32=blocks(4)))) is None
    assert contention.preempted(None) is None


def test_one_line_tells_it_all_with_the_arms_names() -> None:
    found = contention.of(
        timed(
            fp32=blocks(20, preemptions=0, others_s=0.1, stolen_s=0.05, throttled=1, periods=10),
            amp=blocks(20, preemptions=1, others_s=0.1),
            gpu=((GpuState(1980),), (GpuState(1965),)),
            gpu_processes=2,
        )
    )
    assert found.said({"fp32": "fp32+tf32", "amp": "amp"}) == (
        "other processes kept 1.0 of 2 cores busy, 2 threads, a thread was preempted in 0 of 20 "
        "fp32+tf32 blocks and 20 of 20 amp blocks, the hypervisor took 0.5 cores, a quota stopped "
        "it in 10% of its periods, fp32+tf32 at 1980 MHz, amp at 1965 MHz, other processes on the "
        "GPU"
    )
    assert Contention().said({}) == "the system does not count what others take"
    assert Contention("cpu", 0.5, 2, 1).said({}) == "it may use 0.5 cores, 1 thread"


# Whether it could have made a verdict.


def speed(timing: Timing, wanted: float):
    limits = Limits(min_speedup=wanted, max_loss_diff=None)
    return next(each for each in gates.judge(seen(timing=timing), limits) if each.name == "speedup")


def test_a_failure_that_waiting_could_have_made_is_none() -> None:
    late = blocks(20, preemptions=2, waited_s=0.03, others_s=0.1)  # 30% of the amp blocks' time
    timing = timed(1.2, fp32=blocks(20, preemptions=0, waited_s=0.001, others_s=0.1), amp=late)
    gate = speed(timing, 1.5)  # 1.2x, and 1.70x without what the arms waited
    assert gate.verdict == "inconclusive"
    assert gate.reason == (
        "1.20x [1.20, 1.20] looks below 1.50x, but the amp arm's threads had no processor for 30% "
        "of its time (fp32's for 1.0%), which could have made that difference; other processes "
        "keep 1.0 of 2 cores busy, and 2 threads wait for each other: set OMP_NUM_THREADS=1 "
        "(20 pairs of 4-step blocks)"
    )


def test_a_pass_that_waiting_could_have_made_is_none() -> None:
    timing = timed(1.6, fp32=blocks(20, waited_s=0.03), amp=blocks(20, waited_s=0.0))
    gate = speed(timing, 1.5)
    assert gate.verdict == "inconclusive"
    assert "looks above 1.50x, but the fp32 arm's threads had no processor for 30%" in gate.reason
    assert "stop other work on the machine" in gate.reason


@pytest.mark.parametrize(
    ("ratio", "fp32_s", "amp_s", "verdict"),
    [
        pytest.param(1.2, 0.03, 0.03, "fail", id="both wait alike"),
        pytest.param(1.2, 0.0, 0.01, "fail", id="too little to matter"),
        pytest.param(1.2, 0.03, 0.0, "fail", id="the other arm waits"),
        pytest.param(1.6, 0.03, 0.03, "pass", id="both wait alike, and it passes"),
        pytest.param(1.6, 0.0, 0.03, "pass", id="faster still without"),
        pytest.param(1.2, None, None, "fail", id="nothing is known"),
    ],
)
def test_other_verdicts_stand(ratio, fp32_s, amp_s, verdict) -> None:
    timing = timed(ratio, fp32=blocks(20, waited_s=fp32_s), amp=blocks(20, waited_s=amp_s))
    assert speed(timing, 1.5).verdict == verdict


def test_an_accelerators_host_may_wait_as_it_likes() -> None:
    late = blocks(20, waited_s=0.03)
    timing = timed(1.2, fp32=blocks(20, waited_s=0.0), amp=late, device_type="cuda")
    assert speed(timing, 1.5).verdict == "fail"


def test_a_few_late_blocks_make_no_verdict() -> None:
    amp = (*blocks(4, waited_s=0.09), *blocks(16, waited_s=0.0))
    assert speed(timed(1.2, fp32=blocks(20, waited_s=0.0), amp=amp), 1.5).verdict == "fail"


def test_a_block_that_did_nothing_but_wait_is_no_division_by_zero() -> None:
    late = blocks(20, waited_s=0.2)  # more than it lasted, as the clocks differ
    assert contention.undisturbed(timed(1.5, fp32=late, amp=late)) == pytest.approx((1.5,) * 20)
    assert contention.undisturbed(timed(1.5, fp32=blocks(20), amp=blocks(20))) == pytest.approx(
        (1.5,) * 20
    )
