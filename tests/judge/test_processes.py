"""What several processes measured of one test, judged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_amp.judge import processes
from pytest_amp.results.processes import ProcessRun
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import Estimate, Failure, Gate


def gate(verdict: str, value: float = 1.1, name: str = "speedup", threshold: float | None = 1.3):
    return Gate(name, threshold, value, value - 0.02, value + 0.02, verdict, "so it is")  # type: ignore[arg-type]


def report(*gates: Gate, value: float = 1.1) -> AmpReport:
    verdict = "fail" if any(each.verdict == "fail" for each in gates) else "pass"
    estimate = Estimate((value,) * 10, value - 0.02, value + 0.02, 4)
    return AmpReport("test_it.py::test", verdict, "2026-11-30", gates=gates, speedup=estimate)  # type: ignore[arg-type]


def runs(*medians: float | None) -> list[ProcessRun]:
    return [
        ProcessRun(value, value and value - 0.1, value and value + 0.1, 10, "pass", "it crashed")
        for value in medians
    ]


# One more process, before an answer counts.


@pytest.mark.parametrize(
    ("confirm", "verdict", "asked"),
    [
        ("off", "fail", ()),
        ("off", "pass", ()),
        ("red", "fail", ("speedup",)),
        ("red", "pass", ()),
        ("all", "fail", ("speedup",)),
        ("all", "pass", ("speedup",)),
        ("all", "inconclusive", ()),
        ("all", "not_gated", ()),
    ],
)
def test_which_answers_are_asked_again(confirm, verdict, asked) -> None:
    assert processes.to_confirm(report(gate(verdict)), confirm) == asked


def test_only_timing_gates_with_a_threshold_are_asked_again() -> None:
    found = report(
        gate("fail", name="compare:speedup"),
        gate("fail", name="loss_diff"),
        gate("fail", name="compare:memory"),
        gate("pass", threshold=None),
    )
    assert processes.to_confirm(found, "all") == ("compare:speedup",)


def test_an_answer_that_a_fresh_process_gives_too_stands() -> None:
    found = processes.confirmed(
        report(gate("fail")), ["speedup"], report(gate("fail", 1.12), value=1.12)
    )
    assert found.verdict == "fail"
    assert found.gate("speedup").reason == "so it is; a fresh process agrees (1.12x [1.10, 1.14])"
    assert [run.value for run in found.processes] == [1.1, 1.12]


@pytest.mark.parametrize(
    ("mine", "theirs", "said"),
    [
        ("fail", "pass", "a fresh process passes (1.45x [1.43, 1.47]), so this is no answer"),
        ("pass", "fail", "a fresh process fails (1.45x [1.43, 1.47]), so this is no answer"),
        ("fail", "inconclusive", "a fresh process has no answer (1.45x [1.43, 1.47]), so"),
    ],
)
def test_an_answer_that_a_fresh_process_does_not_give_is_none(mine, theirs, said) -> None:
    again = report(gate(theirs, 1.45), value=1.45)
    found = processes.confirmed(report(gate(mine)), ["speedup"], again)
    assert found.verdict == "inconclusive"
    assert found.gate("speedup").verdict == "inconclusive"
    assert said in found.gate("speedup").reason


def test_other_failures_stay_failures() -> None:
    first = report(gate("fail"), gate("fail", name="loss_diff"))
    found = processes.confirmed(first, ["speedup"], report(gate("pass")))
    assert found.verdict == "fail"
    assert found.gate("loss_diff") == first.gate("loss_diff")


def test_a_process_that_brought_nothing_back_confirms_nothing() -> None:
    found = processes.confirmed(report(gate("fail")), ["speedup"], None, "it ended with status 3")
    assert found.verdict == "inconclusive"
    assert found.gate("speedup").reason.endswith(
        "a fresh process could not confirm it (it ended with status 3)"
    )
    assert found.processes[1] == ProcessRun(None, None, None, 0, "error", "it ended with status 3")


def test_a_process_in_which_the_test_raised_confirms_nothing_either() -> None:
    failure = Failure("amp", "timing", 1, "OutOfMemoryError", "CUDA out of memory")
    again = replace(report(), speedup=None, error=failure, verdict="error")
    found = processes.confirmed(report(gate("fail")), ["speedup"], again)
    assert "could not confirm it (CUDA out of memory)" in found.gate("speedup").reason


def test_a_comparison_is_shown_as_the_change_that_it_is() -> None:
    mine = report(gate("fail", -0.12, "compare:speedup", 0.05))
    again = report(gate("fail", -0.11, "compare:speedup", 0.05))
    found = processes.confirmed(mine, ["compare:speedup"], again)
    assert found.gate("compare:speedup").reason.endswith("a fresh process agrees (-11%)")


# The process as the unit.


def test_processes_decide_as_pairs_do_once_there_are_enough() -> None:
    assert processes.fewest(0.01) == 9
    assert processes.decided(runs(*[1.5] * 9), 1.3, 0.01) == "pass"
    assert processes.decided(runs(*[1.5] * 8), 1.3, 0.01) is None
    assert processes.decided(runs(*[1.1] * 9), 1.3, 0.01) == "fail"
    assert processes.decided(runs(*[1.1, 1.5] * 8), 1.3, 0.01) is None
    assert processes.decided(runs(*[1.301] * 20), 1.3, 0.01) is None  # as near as that is no answer
    assert processes.decided(runs(*[1.5] * 8, None), 1.3, 0.01) is None


@pytest.mark.parametrize(
    ("value", "verdict", "said"),
    [(1.5, "pass", "1.50x [1.50, 1.50] is at least 1.30x"), (1.1, "fail", "is below 1.30x by 15%")],
)
def test_the_medians_of_processes_decide_the_gate(value, verdict, said) -> None:
    found = processes.over(report(gate("pass")), runs(*[value] * 9), 0.01)
    assert found.verdict == verdict
    judged = found.gate("speedup")
    assert (judged.verdict, judged.value) == (verdict, value)
    assert said in judged.reason
    assert judged.reason.endswith("(medians of 9 processes)")
    assert found.speedup.pairs == 9
    assert len(found.processes) == 9


def test_too_few_processes_have_no_answer_and_say_how_many_would() -> None:
    found = processes.over(report(gate("pass")), runs(1.5, 1.6), 0.01)
    assert found.speedup.pairs == 10  # its own, which has an interval for later comparisons
    assert found.gate("speedup").verdict == "inconclusive"
    assert found.gate("speedup").reason == (
        "1.55x can't be told from 1.30x (1.50x [1.40, 1.60], 1.60x [1.50, 1.70]); the fewest that "
        "could decide are 9: --amp-processes=9 (medians of 2 processes)"
    )


def test_processes_that_differ_have_no_answer_and_say_by_how_much() -> None:
    found = processes.over(report(gate("pass")), runs(*[1.1, 1.5] * 6), 0.01)
    assert found.gate("speedup").verdict == "inconclusive"
    assert "they lie from 1.10x to 1.50x" in found.gate("speedup").reason


def test_processes_without_a_figure_are_counted_and_the_first_is_named() -> None:
    found = processes.over(report(gate("pass")), runs(*[1.5] * 9, None, None), 0.01)
    assert found.gate("speedup").verdict == "pass"
    assert found.gate("speedup").reason.endswith(
        "(medians of 9 processes; 2 without a figure, the first: it crashed)"
    )


def test_without_a_threshold_the_medians_are_only_told() -> None:
    found = processes.over(report(gate("not_gated", threshold=None)), runs(1.5, 1.6), 0.01)
    assert found.gate("speedup").verdict == "not_gated"
    assert found.gate("speedup").reason == "1.55x (medians of 2 processes)"


def test_a_report_with_processes_is_read_back() -> None:
    found = processes.over(report(gate("pass")), runs(1.5, None), 0.01)
    assert AmpReport.from_dict(found.to_dict()) == found
