"""A result against a stored one, metric by metric."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pytest_amp import codes
from pytest_amp.judge.comparison import compared, differences, without_baseline
from pytest_amp.results.contention import Contention, Taken
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import COMPARED, ArmRun, Baseline, Estimate, Setting
from pytest_amp.rules import registry
from tests.helpers.saved_runs import ENVIRONMENT, SETTINGS, report

ORIGIN = Baseline("0012", "x/0012_run.json", "2026-01-31T12:00:00+00:00", "c" * 40, "main")
ALL = {"speedup": 0.1, "memory": 0.05, "loss": 0.02}


def held(now: AmpReport, before: AmpReport, **allowed: float) -> AmpReport:
    return compared(now, before, ORIGIN, allowed, registry.beside_baseline(now, before))


def verdict(now: AmpReport, before: AmpReport, metric: str, allowed: float) -> str:
    return held(now, before, **{metric: allowed}).gate(f"compare:{metric}").verdict


def timed(value: float, spread: float = 0.01) -> AmpReport:
    ratios = (value * (1 - spread), value, value * (1 + spread))
    return replace(report(), speedup=Estimate(ratios, ratios[0], ratios[-1], 7))


def test_the_names_are_the_metrics_that_can_be_asked_for() -> None:
    assert tuple(f"compare:{metric}" for metric in codes.COMPARED_METRICS) == COMPARED


def test_the_same_again_passes_everything() -> None:
    again = held(report(), report(), **ALL)
    assert again.verdict == "pass"
    assert [again.gate(name).verdict for name in COMPARED] == ["pass"] * 3
    assert [again.gate(name).threshold for name in COMPARED] == [-0.1, 0.05, 0.02]
    assert again.baseline == ORIGIN


def test_what_nobody_gates_is_told() -> None:
    told = held(timed(1.0), report())
    assert told.verdict == "pass"
    gate = told.gate("compare:speedup")
    assert (gate.verdict, gate.threshold) == ("not_gated", None)
    assert gate.value == pytest.approx(-0.5)


def waiting(value: float, fp32: float, amp: float, device_type: str = "cpu") -> AmpReport:
    """A timed result whose arms' threads had no processor for these shares of their time."""
    arms = {"fp32": Taken(20, waited=fp32), "amp": Taken(20, waited=amp)}
    return replace(timed(value), contention=Contention(device_type, 2, 2, 2, arms))


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [
        (waiting(1.7, 0.0, 0.0), timed(2.0), "fail"),
        (waiting(1.7, 0.02, 0.25), timed(2.0), "inconclusive"),  # 2.22x without waits
        (waiting(1.7, 0.25, 0.25), timed(2.0), "fail"),
        (waiting(1.7, 0.0, 0.02), timed(2.0), "fail"),  # 1.73x: they can't have made that
        (waiting(1.7, 0.02, 0.25, "cuda"), timed(2.0), "fail"),  # the host runs ahead
        (timed(1.7), waiting(2.0, 0.25, 0.0), "inconclusive"),  # it was 1.5x
        (waiting(1.9, 0.25, 0.0), timed(2.0), "pass"),
    ],
)
def test_a_fall_that_waits_could_have_made_is_no_answer(now, before, expected) -> None:
    assert verdict(now, before, "speedup", 0.1) == expected


def test_which_arm_waited_is_said_and_in_which_run() -> None:
    gate = held(waiting(1.7, 0.02, 0.25), timed(2.0), speedup=0.1).gate("compare:speedup")
    assert "where 10% is allowed, but the amp arm's threads had no processor for 25%" in gate.reason
    gate = held(timed(1.7), waiting(2.0, 0.25, 0.0), speedup=0.1).gate("compare:speedup")
    assert "but in the baseline, the fp32 arm's threads had no processor for 25%" in gate.reason


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [
        (1.7, 2.0, "fail"),  # [-17%, -13%]
        (1.85, 2.0, "pass"),  # [-9.3%, -5.6%]
        (1.80, 2.0, "inconclusive"),
        (1.83, 2.0, "inconclusive"),  # [-10.3%, -6.6%]
        (2.5, 2.0, "pass"),
    ],
)
def test_a_drop_of_the_speedup_is_called_only_where_the_intervals_exclude_it(
    now: float, before: float, expected: str
) -> None:
    assert verdict(timed(now), timed(before), "speedup", 0.1) == expected


def test_without_an_answer_the_wider_interval_is_told() -> None:
    precise, rough = timed(1.85, 0.01), timed(2.0, 0.06)
    for now, before, said in (
        (precise, rough, "the baseline's [1.88, 2.12] of 3 pairs is the wider interval: save one"),
        (timed(1.85, 0.06), timed(2.0, 0.01), "this run's [1.74, 1.96] of 3 pairs is the wider"),
    ):
        gate = held(now, before, speedup=0.1).gate("compare:speedup")
        assert gate.verdict == "inconclusive"
        assert said in gate.reason


def test_both_arms_are_told_so_that_a_faster_fp32_is_not_read_as_a_slower_amp() -> None:
    before, now = report(speedup=2.0, amp_s=0.005), report(speedup=1.0, amp_s=0.005)
    reason = held(now, before, speedup=0.1).gate("compare:speedup").reason
    assert reason.startswith("-50% [-51%, -49%] is beyond the 10% allowed ")
    assert reason.endswith(
        "(2.00x -> 1.00x; fp32 10.0 -> 5.00 ms, amp 5.00 -> 5.00 ms; amp is as fast as it was, "
        "fp32 is faster)"
    )
    slower = report(speedup=1.0, amp_s=0.010)
    assert "fp32 is faster" not in held(slower, before, speedup=0.1).gate("compare:speedup").reason


@pytest.mark.parametrize(("amp_s", "as_fast"), [(0.00509, True), (0.00512, False), (0.0058, False)])
def test_an_arm_is_as_fast_as_it_was_within_two_percent(amp_s: float, as_fast: bool) -> None:
    before, now = report(speedup=2.0, amp_s=0.005), report(speedup=1.0, amp_s=amp_s)
    reason = held(now, before, speedup=0.1).gate("compare:speedup").reason
    assert ("amp is as fast as it was" in reason) == as_fast


def test_too_few_pairs_are_no_answer() -> None:
    few = replace(report(), speedup=Estimate((1.0,), None, None, 7))
    assert verdict(few, report(), "speedup", 0.1) == "inconclusive"


def test_what_was_not_timed_can_t_be_compared() -> None:
    static = replace(report(), speedup=None)
    for now, before, whose in ((static, report(), "this run"), (report(), static, "the baseline")):
        gate = held(now, before, speedup=0.1).gate("compare:speedup")
        assert (gate.verdict, gate.value, gate.unmeasured) == ("not_gated", None, True)
        assert gate.reason == f"{whose} was not timed"


@pytest.mark.parametrize(
    ("peak", "expected"), [(600, "pass"), (630, "pass"), (631, "fail"), (300, "pass")]
)
def test_the_amp_arm_s_peak_may_grow_by_so_much(peak: int, expected: str) -> None:
    assert verdict(report(peaks=(1000, peak)), report(), "memory", 0.05) == expected


def test_an_unknown_peak_can_t_be_compared() -> None:
    arms = {**report().arms, "amp": replace(report().amp, peak_bytes=None)}
    gate = held(report(arms=arms), report(), memory=0.05).gate("compare:memory")
    assert gate.unmeasured


@pytest.mark.parametrize(
    ("loss", "expected"),
    [(1.0, "pass"), (1.02, "pass"), (1.03, "fail"), (0.5, "pass"), (math.inf, "fail")],
)
def test_the_amp_arm_s_loss_may_rise_by_so_much(loss: float, expected: str) -> None:
    assert verdict(report(loss=loss), report(), "loss", 0.02) == expected


def test_a_loss_that_rose_in_both_arms_is_told_to_be_no_work_of_amp() -> None:
    def run(fp32: float, amp: float) -> AmpReport:
        arms = {"fp32": fp32, "amp": amp}
        return report(
            arms={name: ArmRun((0.01,), {"loss": (2.0, loss)}) for name, loss in arms.items()}
        )

    both, alone = run(1.4, 1.4), run(1.0, 1.4)
    for now, told in ((both, True), (alone, False), (run(0.0, 1.4), False)):
        gate = held(now, run(1.0, 1.0), loss=0.05).gate("compare:loss")
        assert gate.verdict == "fail"
        assert ("fp32's rose as far" in gate.reason) is told


def test_a_loss_that_is_gone_is_no_pass() -> None:
    def run(*keys: str, loss: float = 1.0) -> AmpReport:
        curves = dict.fromkeys(keys, (2.0, loss))
        return report(arms={"fp32": ArmRun((0.01,), curves), "amp": ArmRun((0.005,), curves)})

    gate = held(run("g"), run("g", "d"), loss=0.05).gate("compare:loss")
    assert gate.unmeasured
    assert gate.reason == "the baseline's loss d is gone"
    assert verdict(run("g", loss=2.0), run("g", "d"), "loss", 0.05) == "fail"
    assert held(run("x"), run("g"), loss=0.05).gate("compare:loss").unmeasured


def test_a_loss_that_is_not_finite_fails_whatever_the_noise() -> None:
    assert verdict(report(loss=math.nan, noise_floor=math.inf), report(), "loss", 0.05) == "fail"


def test_what_rounding_explains_is_no_answer() -> None:
    assert verdict(report(loss=1.03, noise_floor=0.05), report(), "loss", 0.02) == "inconclusive"


def test_losses_near_zero_are_held_by_loss_atol() -> None:
    near = {**SETTINGS, "loss_atol": Setting(0.005, "default")}
    now = report(loss=0.004, settings=near)
    assert verdict(now, report(loss=0.0001), "loss", 0.02) == "pass"
    assert verdict(now, report(loss=0.0), "loss", 0.02) == "pass"
    assert verdict(report(loss=0.006, settings=near), report(loss=0.0), "loss", 0.02) == "fail"


def test_of_several_losses_the_worst_is_named() -> None:
    def run(g: float, d: float) -> AmpReport:
        curves = {"g": (2.0, g), "d": (2.0, d), "new": (1.0,)}
        return report(arms={"fp32": ArmRun((0.01,), curves), "amp": ArmRun((0.005,), curves)})

    gate = held(run(1.0, 1.5), run(1.0, 1.0), loss=0.1).gate("compare:loss")
    assert gate.verdict == "fail"
    assert "amp's loss of d 1 -> 1.5" in gate.reason


def test_a_regression_fails_a_passing_test_and_leaves_an_error_alone() -> None:
    worse = replace(timed(1.0), verdict="pass")
    assert held(worse, report(), speedup=0.1).verdict == "fail"
    assert held(replace(worse, verdict="inconclusive"), report(), speedup=0.1).verdict == "fail"
    assert held(replace(worse, verdict="error"), report(), speedup=0.1).verdict == "error"


def test_environments_are_told_apart_by_versions_and_flags() -> None:
    after = replace(ENVIRONMENT, torch="2.14.0", driver=None, flags={"cudnn.benchmark": True})
    assert list(differences(ENVIRONMENT, after)) == [
        "torch 2.13.0 -> 2.14.0", "driver 570.1 -> none", "cudnn.benchmark False -> True",
    ]  # fmt: skip
    assert list(differences(ENVIRONMENT, ENVIRONMENT)) == []
    assert list(differences(None, ENVIRONMENT)) == []
    now = held(timed(1.0), replace(report(), environment=after), speedup=0.1)
    assert "compared with run 0012 of 2026-01-31 (commit ccccccc, main); since then torch" in (
        now.explain()
    )


def test_a_missing_baseline_is_told_and_fails_under_strict_alone() -> None:
    missing = without_baseline(report(), "the storage is empty", {"speedup": 0.1, "loss": 0.02})
    assert missing.verdict == "pass"
    assert [gate.name for gate in missing.gates if gate.unmeasured] == [
        "compare:speedup", "compare:loss",
    ]  # fmt: skip
    assert missing.unanswered == ()
    strict = {**SETTINGS, "strict": Setting(["baseline"], "cli")}
    assert len(replace(missing, settings=strict).unanswered) == 2
    bare = without_baseline(report(), "the storage is empty", {})
    assert bare.notes == ("no baseline: the storage is empty",)
    assert len(replace(bare, settings=strict).unanswered) == 1


def test_it_travels_as_json() -> None:
    now = held(timed(1.0), report(), **ALL)
    assert AmpReport.from_dict(now.to_dict()).to_dict() == now.to_dict()
    assert AmpReport.from_dict(now.to_dict()).baseline == ORIGIN


def test_flags_that_differ_from_the_baseline_s_are_a_warning() -> None:
    tuned = replace(ENVIRONMENT, flags={"cudnn.benchmark": True})
    now = held(report(environment=tuned), report())
    [finding] = now.findings
    assert (finding.code, finding.severity, finding.stands) == ("AMP005", "warning", False)
    assert finding.evidence == {"baseline": {"cudnn.benchmark": [False, True]}}
    assert "(cudnn.benchmark: False, now True)" in finding.message
    assert held(now, report()).findings == now.findings  # once, however often it is compared
    assert held(now, replace(report(), environment=tuned)).findings == ()


@pytest.mark.parametrize(
    ("name", "value", "left"),
    [("select", ["AMP1", "AMP2"], []), ("ignore", {"AMP005": "on purpose"}, ["on purpose"])],
)
def test_that_warning_is_selected_and_ignored_as_any(
    name: str, value: object, left: list[str]
) -> None:
    tuned = replace(ENVIRONMENT, flags={"cudnn.benchmark": True})
    given = {**SETTINGS, name: Setting(value, "cli")}
    now = held(report(environment=tuned, settings=given), report())
    assert [finding.suppressed for finding in now.findings] == left
