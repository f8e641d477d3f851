"""pytest-amp compare A B: its exit codes, and what it says of both runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_amp import cli
from pytest_amp.results import Estimate, Gate
from tests.record.runs import ENVIRONMENT, document, report, save

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
        (("1", "77"), 4),
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
    assert lines[2].startswith("  memory              0% (peak of amp 600 -> 600 B")
    assert lines[4] == (
        "  since    run 0001 of 2026-01-01 (commit ccccccc, main); "
        "since then torch 2.13.0 -> 2.14.0"
    )


def test_tests_of_one_run_alone_are_told(runs: Path, capsys: Captured) -> None:
    compare(runs, "1", "4")
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "pytest-amp: test_it.py::test_other on NVIDIA H100 in bfloat16 is in 4 alone",
        "pytest-amp: test_it.py::test_step on NVIDIA H100 in bfloat16 is in 1 alone",
    ]


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
    assert compare(runs, str(first), str(runs), "--fail=speedup:10%") == 3  # the newest, run 5
    assert "test_other" in capsys.readouterr().err


def test_a_broken_file_is_told(runs: Path, capsys: Captured) -> None:
    broken = save(runs, 6, "{")
    assert compare(runs, "1", "6") == 4
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
