"""pytest_amp.history: one row per test and run, in documented columns."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pandas
import pytest

import pytest_amp
from pytest_amp.storage.columns import COLUMNS, page
from pytest_amp.storage.frame import BrokenHistory
from tests.helpers.saved_runs import document, report, save

NAMES = [column.name for column in COLUMNS]
PAGE = Path(__file__).parent.parent.parent / "docs" / "reference" / "history.md"


def test_the_columns_are_documented_as_they_are() -> None:
    assert PAGE.read_text("utf-8") == page(), "python scripts/generate_docs.py writes it"


def test_a_row_per_test_and_run_the_oldest_first(tmp_path: Path) -> None:
    save(tmp_path, 1, document(report(day=3)))
    save(tmp_path, 2, document(report(day=1), report("test_it.py::test_other", day=2)))
    frame = pytest_amp.history(tmp_path)
    assert list(frame.columns) == NAMES
    assert list(frame["run"]) == ["0002", "0002", "0001"]
    assert list(frame["nodeid"].str.partition("::")[2]) == ["test_step", "test_other", "test_step"]
    assert frame["started"].is_monotonic_increasing
    assert str(frame["started"].iloc[0]) == "2026-01-01 12:00:00+00:00"


def test_each_column_holds_what_it_is_named_for(tmp_path: Path) -> None:
    save(tmp_path, 1, document(report()))
    [row] = pytest_amp.history(tmp_path).to_dict("records")
    expected = {
        "verdict": "pass", "branch": "main", "commit": "c" * 40, "run_id": "a" * 32, "dirty": 0.0,
        "device": "NVIDIA H100", "device_type": "cuda", "dtype": "bfloat16", "torch": "2.13.0",
        "cuda": "12.8", "cudnn": "91002", "driver": "570.1", "attempt": 1.0, "duration_s": 4.0,
        "speedup": 2.0, "speedup_low": 1.98, "speedup_high": 2.02, "pairs": 3.0,
        "fp32_step_s": 0.01, "amp_step_s": 0.005, "fp32_peak_bytes": 1000.0,
        "amp_peak_bytes": 600.0, "memory_reduction": 0.4, "fp32_loss": 1.0, "amp_loss": 1.0,
        "loss_diff": 0.0, "noise_floor": 0.001, "coverage": 1.0, "skipped_steps": 1.0,
        "flags": "cudnn.benchmark=False",
    }  # fmt: skip
    for name, value in expected.items():
        assert row[name] == (pytest.approx(value) if isinstance(value, float) else value), name
    empty = {"failed", "errors", "warnings"}
    assert {name for name, value in row.items() if value != value} == empty
    assert set(NAMES) == {*expected, *empty, "started", "nodeid", "run", "key"}


def test_failures_and_findings_are_named(tmp_path: Path) -> None:
    gate = pytest_amp.Gate("loss_diff", 0.02, 1.0, None, None, "fail", "")
    found = [
        pytest_amp.Finding("AMP402", "n", "warning", ""),
        pytest_amp.Finding("AMP203", "n", "error", ""),
        pytest_amp.Finding("AMP101", "n", "error", "", suppressed="known"),
    ]
    save(tmp_path, 1, document(report(verdict="fail", gates=(gate,), findings=tuple(found))))
    [row] = pytest_amp.history(tmp_path).to_dict("records")
    assert (row["failed"], row["errors"], row["warnings"]) == ("loss_diff", "AMP203", "AMP402")


def test_a_loss_that_is_not_finite_is_not_a_number(tmp_path: Path) -> None:
    arms = {**report().arms, "amp": pytest_amp.ArmRun((0.005,), {"loss": (1.0, math.inf)})}
    save(tmp_path, 1, document(report(arms=arms)))
    [row] = pytest_amp.history(tmp_path).to_dict("records")
    assert math.isnan(row["amp_loss"])
    assert row["fp32_loss"] == 1.0


@pytest.mark.parametrize("there", [True, False])
def test_an_empty_storage_has_the_same_columns(tmp_path: Path, there: bool) -> None:
    root = tmp_path / "store"
    if there:
        root.mkdir()
    empty = pytest_amp.history(root)
    save(tmp_path, 1, document(report()))
    full = pytest_amp.history(tmp_path)
    assert len(empty) == 0
    assert list(empty.columns) == list(full.columns)
    assert [kind.kind for kind in empty.dtypes] == [kind.kind for kind in full.dtypes]


def test_a_broken_file_is_a_warning_that_names_it_and_no_row_elsewhere_is_lost(
    tmp_path: Path,
) -> None:
    save(tmp_path, 1, document(report(day=1)))
    broken = save(tmp_path, 2, '{"benchmarks":')
    save(tmp_path, 3, document(report(day=3)))
    with pytest.warns(BrokenHistory) as caught:
        frame = pytest_amp.history(tmp_path)
    assert [str(each.message).startswith(f"{broken}: ") for each in caught] == [True]
    assert list(frame["run"]) == ["0001", "0003"]


def test_it_takes_a_url_and_refuses_what_is_no_folder(tmp_path: Path) -> None:
    save(tmp_path, 1, document(report()))
    assert len(pytest_amp.history(f"file://{tmp_path}")) == 1
    with pytest.raises(ValueError, match="is no folder"):
        pytest_amp.history("elasticsearch+http://localhost/x")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        pytest_amp.history(tmp_path / "file")


def test_it_groups_and_plots_like_any_frame(tmp_path: Path) -> None:
    for day in range(1, 6):
        tests = (report(day=day, speedup=2.0 + day / 100), report("test_it.py::b", day=day))
        save(tmp_path, day, document(*tests))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = pytest_amp.history(tmp_path)
        means = frame.groupby("nodeid", observed=True)["speedup"].mean()
    assert isinstance(means, pandas.Series)
    assert means["test_it.py::test_step"] == pytest.approx(2.03)
