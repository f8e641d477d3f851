"""--amp-json: valid always, whole or not at all, whatever became of the tests."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pytest_amp.render.json import schema
from tests.helpers.project import QUICK, STEP, measure, read

EVERY_OUTCOME = """
import pytest
import torch.nn.functional as F

def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])

@pytest.mark.amp
def test_pass(model, optimizer, batch):
    return loss(model, batch)

@pytest.mark.amp(min_memory_reduction=0.99)
def test_fail(model, optimizer, batch):
    return loss(model, batch)

@pytest.mark.amp
def test_skip(model, optimizer, batch):
    pytest.skip("not today")

@pytest.mark.amp
@pytest.mark.skip(reason="nor tomorrow")
def test_skip_mark(model, optimizer, batch):
    return loss(model, batch)

@pytest.mark.amp
def test_error(model, optimizer, batch):
    raise RuntimeError("no kernel for this")

@pytest.fixture
def broken():
    raise OSError("no such data")

@pytest.mark.amp
def test_setup_error(broken):
    pass

@pytest.mark.amp
def test_not_finite(model, optimizer, batch):
    return loss(model, batch) * float("nan")

def test_never_called(amp_benchmark):
    pass

def test_own_assertion(amp_benchmark, setup):
    assert amp_benchmark(setup).amp.losses[-1] < 0

def test_of_something_else():
    pass
"""


def valid(document: dict[str, Any]) -> dict[str, Any]:
    jsonschema.validate(document, schema())
    return document


def test_every_outcome_is_written_and_fits_the_schema(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=EVERY_OUTCOME)
    _, reports = measure(project)
    valid(read(project))
    assert {name: report["verdict"] for name, report in reports.items()} == {
        "test_pass": "pass",
        "test_fail": "fail",
        "test_skip": "skipped",
        "test_skip_mark": "skipped",
        "test_error": "error",
        "test_setup_error": "error",
        "test_not_finite": "fail",
        "test_never_called": "fail",
        "test_own_assertion": "error",
    }
    assert reports["test_skip"]["skip_reason"] == "not today"
    assert reports["test_skip_mark"]["skip_reason"] == "nor tomorrow"
    error = reports["test_error"]["error"]
    assert (error["arm"], error["phase"], error["step"]) == ("amp", "parity", 1)
    assert error["type"] == "RuntimeError"
    assert "no kernel for this" in error["message"]
    assert reports["test_setup_error"]["error"]["phase"] == "setup"
    assert reports["test_never_called"]["findings"][0]["code"] == "AMP001"


def test_a_test_that_fails_after_its_measurement_is_no_pass_and_keeps_its_figures(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(test_it=EVERY_OUTCOME)
    _, reports = measure(project, "-k", "own_assertion")
    report = reports["test_own_assertion"]
    assert report["error"]["phase"] == "call"
    assert report["error"]["type"] == "AssertionError"
    assert len(report["arms"]["amp"]["losses"]["loss"]) == 2


def test_what_is_not_finite_is_null_and_named(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=EVERY_OUTCOME)
    _, reports = measure(project, "-k", "not_finite")
    report = reports["test_not_finite"]
    assert report["arms"]["amp"]["losses"]["loss"] == [None, None]
    assert "arms.amp.losses.loss[0]" in report["nonfinite"]


def test_the_run_is_described(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP)
    measure(project, "-k", "step")
    run = read(project)["run"]
    assert run["command"].startswith("pytest ")
    assert "-k step" in run["command"]
    assert (run["commit"], run["dirty"]) == (None, None)  # no repository there


def test_a_run_without_an_amp_test_is_written_too(project: pytest.Pytester) -> None:
    project.makepyfile("def test_other(): pass")
    measure(project)
    assert valid(read(project))["tests"] == []


def test_a_collection_error_is_no_reason_for_an_old_report(project: pytest.Pytester) -> None:
    project.path.joinpath("amp.json").write_text("from last week")
    project.makepyfile(test_broken="import does_not_exist", test_it=STEP)
    result = project.runpytest("--amp-json=amp.json", *QUICK)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert valid(read(project))["tests"] == []


def test_a_wrong_marker_is_no_reason_for_an_old_report(project: pytest.Pytester) -> None:
    project.path.joinpath("amp.json").write_text("from last week")
    project.makepyfile(test_it=STEP.replace("amp\n", "amp(min_speedpu=1)\n"))
    project.runpytest("--amp-json=amp.json", *QUICK)
    assert valid(read(project))["tests"] == []


def test_collecting_only_leaves_an_existing_report_alone(project: pytest.Pytester) -> None:
    project.path.joinpath("amp.json").write_text("measured")
    project.makepyfile(test_it=STEP)
    project.runpytest("--amp-json=amp.json", "--co")
    assert project.path.joinpath("amp.json").read_text() == "measured"


def test_missing_directories_are_made(project: pytest.Pytester) -> None:
    project.runpytest("--amp-json=reports/today/amp.json")
    assert project.path.joinpath("reports/today/amp.json").is_file()


def test_a_path_may_begin_at_home(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(project.mkdir("home")))
    monkeypatch.setenv("USERPROFILE", str(project.path / "home"))
    project.runpytest("--amp-json=~/amp.json")
    assert project.path.joinpath("home/amp.json").is_file()


def test_a_write_that_fails_leaves_the_old_report_whole_and_is_no_success(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.path.joinpath("amp.json").write_text("from last week")
    project.makepyfile(test_it=STEP)

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    result = project.runpytest("--amp-json=amp.json", *QUICK)
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stderr.fnmatch_lines(["pytest-amp: --amp-json could not be written: *No space left*"])
    assert project.path.joinpath("amp.json").read_text() == "from last week"
    assert not list(project.path.glob(".amp-*"))


@pytest.mark.parametrize("path", ["a_directory", "a_file/amp.json"])
def test_a_path_that_cannot_be_written_stops_the_run_before_an_hour_is_lost(
    project: pytest.Pytester, path: str
) -> None:
    project.mkdir("a_directory")
    project.path.joinpath("a_file").write_text("")
    project.makepyfile("raise RuntimeError('collected')")
    result = project.runpytest(f"--amp-json={path}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --amp-json=*: can't write there: *"])
    result.stdout.no_fnmatch_line("*collected*")


def test_each_rank_writes_a_report_of_its_own(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        project.runpytest("--amp-json=reports/amp.json")
    written = sorted(path.name for path in (project.path / "reports").iterdir())
    assert written == ["amp.json", "amp.rank1.json"]


def test_a_link_is_followed(project: pytest.Pytester) -> None:
    real = project.mkdir("real") / "amp.json"
    project.path.joinpath("amp.json").symlink_to(real)
    project.runpytest("--amp-json=amp.json")
    assert valid(json.loads(real.read_text()))["tests"] == []
    assert project.path.joinpath("amp.json").is_symlink()


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="needs /dev/null")
def test_a_device_file_is_written_to_where_no_file_can_be_made(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    result = project.runpytest("--amp-json=/dev/null")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert not Path("/dev/null").is_file()


def test_a_test_that_raised_says_how_long_it_took(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import time

        def test_it(amp_benchmark):
            def setup(arm):
                taken = []
                def step():
                    taken.append(1)
                    if len(taken) > 2:
                        time.sleep(0.02)
                        raise ValueError("broken")
                    return 1.0
                return step
            amp_benchmark(setup)
        """
    )
    result = project.runpytest("--amp-static", "--amp-json=amp.json", "-v")
    result.assert_outcomes(failed=1)
    [report] = json.loads((project.path / "amp.json").read_text("utf-8"))["tests"]
    assert report["verdict"] == "error"
    assert report["phases_s"]["parity"] >= 0.02
    assert report["duration_s"] >= report["phases_s"]["parity"]
    result.stdout.no_fnmatch_line("*phases *0.00 ns in all*")
