"""pytest-amp compare A B: its exit codes, and what it says of both runs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_amp.cli import main as cli
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import Estimate, Failure, Gate
from tests.helpers.saved_runs import ENVIRONMENT, document, report, save

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Run 1, the same again, one that is slower under another torch, and one of another test."""
    newer = replace(ENVIRONMENT, torch="2.14.0")
    save(tmp_path, 1, document(report(day=1)))
    save(tmp_path, 2, document(report(day=2)))
    save(tmp_path, 3, document(report(day=3, speedup=1.5, environment=newer)))
    save(tmp_path, 4, document(report("test_it.py::test_other", day=4)))
    few = replace(report(day=5), speedup=Estimate((2.0,), None, None, 7))
    save(tmp_path, 5, document(few))
    return tmp_path


def compare(runs: Path, *arguments: str) -> int:
    return cli.main(["compare", *arguments, f"--storage={runs}"])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("1", "2"), 0),
        (("1", "3"), 0),  # nobody said what may get worse
        (("1", "2", "--fail=speedup:10%,memory:1%,loss:1%"), 0),
        (("1", "3", "--fail=speedup:10%"), 1),
        (("3", "1", "--fail=speedup:10%"), 0),
        (("1", "2", "--fail=speed:10%"), 2),
        (("1", "5", "--fail=speedup:10%"), 3),
        (("1", "4"), 4),
        (("1", "77"), 2),
        (("77", "1"), 4),
        (("no/such/*.json", "1"), 4),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else str(each),
)
def test_exit_codes(runs: Path, arguments: tuple[str, ...], code: int) -> None:
    assert compare(runs, *arguments) == code


def test_each_metric_is_told_with_both_arms_and_what_changed(runs: Path, capsys: Captured) -> None:
    compare(runs, "1", "3", "--fail=speedup:10%")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "test_it.py::test_step"
    assert lines[1].startswith(
        "  speedup  FAILED     -25% [-26%, -23%] is beyond the 10% allowed (2.00x -> 1.50x; fp32 "
    )
    assert lines[2].startswith("  memory   not gated  0% (peak of amp 600 -> 600 B")
    assert lines[4] == (
        "  since    run 0001 of 2026-01-01 (commit ccccccc, main); "
        "since then torch 2.13.0 -> 2.14.0"
    )


def test_tests_of_one_run_alone_are_told(runs: Path, capsys: Captured) -> None:
    compare(runs, "1", "4")
    captured = capsys.readouterr()
    other = "test_it.py::test_other: there is no result of this test on NVIDIA H100 in"
    assert captured.err.splitlines() == [
        f"pytest-amp: {other} bfloat16 in 1",
        "pytest-amp: test_it.py::test_step is in 1 alone",
    ]
    assert captured.out == "0 tests compared, 1 without a baseline, 1 gone\n"


def test_scripts_get_the_reports(runs: Path, capsys: Captured) -> None:
    assert compare(runs, "1", "3", "--json", "--fail=speedup:10%") == 1
    [found] = json.loads(capsys.readouterr().out)
    gates = {gate["name"]: gate["verdict"] for gate in found["gates"]}
    assert gates["compare:speedup"] == "fail"
    assert found["baseline"]["run"] == "0001"


def test_folders_and_files_are_runs_too(runs: Path, capsys: Captured) -> None:
    [first] = runs.glob("*/0001_run.json")
    [second] = runs.glob("*/0002_run.json")
    assert compare(runs, str(first), str(second), "--fail=speedup:10%") == 0
    assert compare(runs, str(first), str(runs / "*" / "000[25]*"), "--fail=speedup:10%") == 3
    assert compare(runs, str(first), str(runs), "--fail=speedup:10%") == 4  # test_other is new
    assert "test_other" in capsys.readouterr().err


def test_a_broken_file_is_told(runs: Path, capsys: Captured) -> None:
    broken = save(runs, 6, "{")
    assert compare(runs, "6", "1") == 4
    assert f"pytest-amp: {broken}: is no whole JSON" in capsys.readouterr().err


def test_what_an_earlier_comparison_found_is_not_found_again(runs: Path, capsys: Captured) -> None:
    earlier = Gate("compare:speedup", -0.1, -0.3, -0.4, -0.2, "fail", "30% slower than once")
    failed = report(day=6, verdict="fail", gates=(*report().gates, earlier))
    save(runs, 6, document(failed))
    assert compare(runs, "1", "6") == 0
    text = capsys.readouterr().out
    assert "than once" not in text
    assert text.count("speedup") == 1
    assert compare(runs, "1", "6", "--json") == 0
    [found] = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "pass"


def test_a_failed_result_is_no_baseline_and_may_be_looked_at(runs: Path, capsys: Captured) -> None:
    save(runs, 7, document(report(day=7, speedup=1.0, verdict="fail")))
    save(runs, 8, document(report(day=8, speedup=1.0)))
    assert compare(runs, "7", "8", "--fail=speedup:10%") == 4
    assert "is no passing one (fail)" in capsys.readouterr().err
    assert compare(runs, str(runs / "*" / "000[17]*"), "8", "--fail=speedup:10%") == 1
    assert "since    run 0001" in capsys.readouterr().out
    assert compare(runs, "7", "8") == 0


def test_a_run_is_not_compared_with_itself(runs: Path, capsys: Captured) -> None:
    assert compare(runs, str(runs), "3", "--fail=speedup:10%") == 1
    assert "since    run 0002" in capsys.readouterr().out
    assert compare(runs, "3", "3") == 4


def test_limits_add_up_and_a_wrong_one_is_named(runs: Path, capsys: Captured) -> None:
    assert compare(runs, "1", "3", "--fail=speedup:10%", "--fail=memory:5%") == 1
    assert compare(runs, "1", "3", "--fail=speed") == 2
    assert capsys.readouterr().err.startswith("pytest-amp: --fail 'speed' is not METRIC:PCT")


def test_a_figure_that_is_missing_is_no_answer(runs: Path) -> None:
    save(runs, 7, document(replace(report(day=7), speedup=None)))
    assert compare(runs, "1", "7", "--fail=speedup:10%") == 3


def test_the_last_line_counts(runs: Path, capsys: Captured) -> None:
    compare(runs, "1", "3", "--fail=speedup:10%")
    assert capsys.readouterr().out.splitlines()[-1] == "1 test compared, 1 regression"


def test_what_a_run_itself_failed_is_told(runs: Path, capsys: Captured) -> None:
    gate = Gate("speedup", 3.0, 2.0, None, None, "fail", "too slow")
    save(runs, 7, document(report(day=7, verdict="fail", gates=(gate,))))
    assert compare(runs, "1", "7") == 0
    assert capsys.readouterr().out.startswith("test_it.py::test_step (which failed: speedup)\n")


def test_a_reader_that_has_seen_enough_changes_no_exit_code(runs: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest_amp.cli",
        "compare",
        "1",
        "3",
        "--fail=speedup:10%",
    ]
    compared = subprocess.Popen([*command, f"--storage={runs}"], stdout=subprocess.PIPE)
    assert compared.stdout is not None
    compared.stdout.close()
    assert compared.wait() == 1


def errored(nodeid: str = "test_it.py::test_step", day: int = 9) -> AmpReport:
    """As a test that broke before anything was measured."""
    failure = Failure("amp", "parity", 3, "RuntimeError", "no kernel")
    return AmpReport(nodeid, "error", f"2026-01-{day:02}T12:00:00+00:00", error=failure)


def test_a_test_that_broke_is_no_pass_and_no_older_result_stands_for_it(
    runs: Path, capsys: Captured
) -> None:
    fine = report("test_it.py::test_other", day=9)
    save(runs, 9, document(errored(), fine))
    assert compare(runs, str(runs / "*" / "000[14]*"), "9", "--fail=speedup:50%") == 3
    captured = capsys.readouterr()
    assert captured.out.endswith("1 test compared, 1 not measured\n")
    assert captured.err == (
        "pytest-amp: test_it.py::test_step: its newest result was not measured "
        "(error: amp arm, parity, step 3, RuntimeError: no kernel)\n"
    )
    assert compare(runs, "1", str(runs / "*" / "000[29]*"), "--fail=speedup:50%") == 4
    assert "its newest result was not measured" in capsys.readouterr().err


def test_a_test_that_is_gone_is_no_pass_where_something_is_gated(runs: Path) -> None:
    save(runs, 8, document(report(day=8), report("test_it.py::test_other", day=8)))
    assert compare(runs, "8", "2", "--fail=speedup:10%") == 3
    assert compare(runs, "8", "2") == 0


def test_without_a_limit_untimed_results_may_be_looked_at(runs: Path, capsys: Captured) -> None:
    save(runs, 7, document(replace(report(day=7), speedup=None)))
    assert compare(runs, "7", "2") == 0
    assert "the baseline was not timed" in capsys.readouterr().out
    assert compare(runs, "7", "2", "--fail=memory:5%") == 0
    assert compare(runs, "7", "2", "--fail=speedup:5%") == 4
    assert compare(runs, "2", "2") == 4
    assert "in run 0002, is the same run" in capsys.readouterr().err


def test_another_dtype_is_told_once(runs: Path, capsys: Captured) -> None:
    half = replace(ENVIRONMENT, dtype="float16")
    save(runs, 7, document(report(day=7, environment=half)))
    assert compare(runs, "7", "2") == 4
    captured = capsys.readouterr()
    assert captured.out == "0 tests compared, 1 without a baseline\n"
    assert "has dtype float16, not bfloat16" in captured.err
