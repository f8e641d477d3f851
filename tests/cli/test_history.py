"""pytest-amp history: what people read, what scripts get, and where a metric stepped."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_amp.cli import main as cli
from tests.helpers.saved_runs import ENVIRONMENT, document, report, save

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def stepped(tmp_path: Path) -> Path:
    """Twenty-four runs of two tests; the speedup of one drops with another torch after twelve."""
    newer = replace(ENVIRONMENT, torch="2.14.0", driver="580.2")
    for day in range(1, 25):
        wiggle = 0.01 * (day % 3)
        now = report(speedup=2.0 + wiggle, day=day)
        if day > 12:
            now = report(speedup=1.6 + wiggle, day=day, environment=newer)
        save(tmp_path, day, document(now, report("test_it.py::test_flat", day=day)))
    return tmp_path


def shown(capsys: Captured, *arguments: str) -> str:
    assert cli.main(["history", *arguments]) == 0
    return capsys.readouterr().out


def test_each_test_is_a_row_with_its_newest_figures(stepped: Path, capsys: Captured) -> None:
    lines = shown(capsys, f"--storage={stepped}").splitlines()
    assert lines[0] == (
        "  passed  newest           verdict  speedup        step time  amp peak  amp loss"
    )
    assert lines[1] == "-" * len(lines[0])
    flat = lines.index("test_it.py::test_flat on NVIDIA H100 in bfloat16")
    assert lines[flat + 1] == (
        "  24/24   0024 2026-01-24  pass       2.00x  10.0 -> 5.00 ms     600 B         1"
    )
    assert lines[flat + 2 :] == [] or lines[flat + 2].startswith("test_it.py")


def test_a_figure_that_the_last_run_lacks_is_the_newest_there_is(
    tmp_path: Path, capsys: Captured
) -> None:
    save(tmp_path, 1, document(report(day=1)))
    save(tmp_path, 2, document(report(day=2, verdict="error", arms={}, speedup=2.0)))
    text = shown(capsys, f"--storage={tmp_path}")
    assert "  1/2     0002 2026-01-02  error      2.00x  10.0 -> 5.00 ms  " in text


def test_a_step_is_told_below_with_its_run_and_what_came_with_it(
    stepped: Path, capsys: Captured
) -> None:
    text = shown(capsys, f"--storage={stepped}")
    assert (
        "    speedup   stepped in run 0013 of 2026-01-13: 2.01x -> 1.61x (-20%), "
        "with torch 2.13.0 -> 2.14.0, driver 570.1 -> 580.2\n"
    ) in text
    assert text.count(" stepped in ") == 2  # and the fp32 arm's time, which it is made of


def test_runs_whose_code_was_dirty_are_marked(tmp_path: Path, capsys: Captured) -> None:
    for day in range(1, 25):
        now = report(speedup=(2.0 if day < 13 else 1.6) + 0.01 * (day % 3), day=day)
        save(tmp_path, day, document(now, dirty=day >= 13))
    text = shown(capsys, f"--storage={tmp_path}")
    assert "  24/24   0024+ 2026-01-24  pass " in text
    assert (
        "stepped in run 0013+ of 2026-01-13: 2.01x -> 1.61x (-20%), "
        "with changes that were not committed\n"
    ) in text
    assert text.endswith("+ with changes that were not committed\n")
    save(tmp_path, 25, document(report(day=25)))
    assert "0025 2026-01-25" in shown(capsys, f"--storage={tmp_path}")


def test_on_a_terminal_steps_are_wrapped(
    stepped: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    lines = shown(capsys, "step", f"--storage={stepped}").splitlines()
    assert max(map(len, lines)) <= 80
    assert "                         torch 2.13.0 -> 2.14.0, driver 570.1 -> 580.2" in lines


def test_tests_are_chosen_by_a_part_of_their_name_or_a_glob(
    stepped: Path, capsys: Captured
) -> None:
    for wanted in ("flat", "*::test_fl*"):
        text = shown(capsys, wanted, f"--storage={stepped}")
        assert "test_flat" in text
        assert "test_step" not in text
    assert shown(capsys, "nothing", f"--storage={stepped}") == (
        f"no results of nothing in {stepped}\n"
    )


def test_results_of_one_branch_alone(stepped: Path, capsys: Captured) -> None:
    save(stepped, 30, document(report(day=30), branch="topic"))
    assert " 1/1 " in shown(capsys, "--branch=topic", f"--storage={stepped}")
    assert shown(capsys, "--branch=none", f"--storage={stepped}") == (
        f"no results on branch none in {stepped}\n"
    )


def test_scripts_get_every_row_and_column(stepped: Path, capsys: Captured) -> None:
    rows = list(csv.DictReader(io.StringIO(shown(capsys, "--csv", f"--storage={stepped}"))))
    objects = json.loads(shown(capsys, "--json", f"--storage={stepped}"))
    assert len(rows) == len(objects) == 48
    assert float(rows[0]["speedup"]) == objects[0]["speedup"]
    assert objects[0]["started"].startswith("2026-01-01T12:00:00")
    assert set(rows[0]) == set(objects[0])


def test_an_empty_storage_is_no_error(tmp_path: Path, capsys: Captured) -> None:
    none = tmp_path / "none"
    assert shown(capsys, f"--storage={none}") == f"no results in {none}\n"
    assert shown(capsys, "x", f"--storage={none}") == f"no results of x in {none}\n"
    assert json.loads(shown(capsys, "--json", f"--storage={none}")) == []
    assert shown(capsys, "--csv", f"--storage={none}").startswith("started,nodeid,verdict")


def test_what_can_t_be_read_is_told_and_the_rest_is_shown(stepped: Path, capsys: Captured) -> None:
    broken = save(stepped, 99, "{")
    assert cli.main(["history", f"--storage={stepped}"]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith(f"pytest-amp: {broken}: is not complete JSON")
    assert captured.out.count(" 24/24 ") == 2


@pytest.mark.parametrize("storage", ["elasticsearch+http://x/y", "{}/file"])
def test_a_storage_that_is_none_is_a_usage_error(
    tmp_path: Path, capsys: Captured, storage: str
) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["history", f"--storage={storage.format(tmp_path)}"]) == 2
    assert capsys.readouterr().err.startswith("pytest-amp: ")


def test_a_name_from_a_file_can_t_write_on_the_terminal(tmp_path: Path, capsys: Captured) -> None:
    save(tmp_path, 1, document(report("test_it.py::test[\x1b[31m\n<script>]")))
    text = shown(capsys, f"--storage={tmp_path}")
    assert "\x1b" not in text
    assert "test[\\x1b[31m\\n<script>]" in text


def test_whatever_is_stored_is_shown_in_characters_that_print(
    tmp_path: Path, capsys: Captured
) -> None:
    for day in range(1, 25):
        torch = "2.13\x1b[2J" if day > 12 else "2.12"
        now = report(speedup=2.0 if day < 13 else 1.0, day=day,
                     environment=replace(ENVIRONMENT, torch=torch))  # fmt: skip
        content = document(now)
        for entry in content["benchmarks"]:
            entry["extra_info"]["amp"] = {**entry["extra_info"]["amp"], "verdict": "\x1b[31mX"}
        save(tmp_path, day, content)
    text = shown(capsys, f"--storage={tmp_path}")
    assert "stepped in" in text
    assert "\x1b" not in text


def test_a_console_that_knows_fewer_characters_gets_escapes(tmp_path: Path) -> None:
    save(tmp_path, 1, document(report("test_it.py::test[\u00e9\U0001f525]")))
    done = subprocess.run(
        [sys.executable, "-m", "pytest_amp.cli", "history", f"--storage={tmp_path}"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert b"test[\\xe9\\U0001f525]" in done.stdout
