"""--amp-compare and what goes with it, from run to run."""

from __future__ import annotations

import json

import pytest

from pytest_amp.plugin import compare
from pytest_amp.storage.baseline import Baselines
from tests.helpers.clock import TIMED, sleeping, stored
from tests.helpers.project import gate, read

__all__ = ["sleeping"]

KEPT = (*TIMED, "--benchmark-autosave", "--amp-json=amp.json", "--amp-max-time=3")
GATED = "--amp-compare-fail=speedup:10%"


@pytest.fixture
def saved(sleeping: pytest.Pytester) -> pytest.Pytester:
    """With one passing run in its storage."""
    sleeping.runpytest(*KEPT).assert_outcomes(passed=1)
    return sleeping


def test_an_amp_arm_that_is_20_percent_slower_fails_and_fails_again_the_next_time(
    saved: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMP_SLOWER", "1.2")
    for run in (2, 3):
        result = saved.runpytest(*KEPT, GATED)
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(
            ["compare:speedup -17% * is below -10%", "*compared with run 0001 of *", "*since*"]
        )
        assert len(stored(saved)) == run
    monkeypatch.delenv("AMP_SLOWER")
    saved.runpytest(*KEPT, GATED).assert_outcomes(passed=1)


def test_a_result_with_other_recipes_is_no_baseline(saved: pytest.Pytester) -> None:
    result = saved.runpytest(*KEPT, "--amp-compare", "--amp-reference=bf16")
    result.assert_outcomes(passed=1)
    assert read(saved)["tests"][0]["baseline"] is None
    told = " ".join(result.stdout.str().split())
    assert "is of bfloat16 against float32, not of bf16 against bf16" in told
    saved.runpytest(*KEPT, "--amp-compare", "--amp-candidate=bf16")  # as autocast is by default
    assert read(saved)["tests"][0]["baseline"] is not None


def test_without_a_limit_the_change_is_told(saved: pytest.Pytester) -> None:
    result = saved.runpytest(*KEPT, "--amp-compare")
    result.assert_outcomes(passed=1)
    [report] = read(saved)["tests"]
    assert report["baseline"]["run"] == "0001"
    assert gate(report, "compare:speedup")["verdict"] == "not_gated"
    assert gate(report, "compare:memory")["value"] == 0
    result.stdout.fnmatch_lines(["*since*"])


def test_an_environment_that_changed_is_told_beside_a_regression(
    saved: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    [path] = stored(saved)
    path.write_text(path.read_text().replace('"torch": "2', '"torch": "1'))
    monkeypatch.setenv("AMP_SLOWER", "2")
    result = saved.runpytest(*KEPT, GATED)
    result.stdout.fnmatch_lines(["*; since then torch 1.* -> 2.*"])
    exact = saved.runpytest(*KEPT, GATED, "--amp-compare-exact")
    exact.assert_outcomes(passed=1)
    assert "with these versions and flags" in " ".join(exact.stdout.str().split())


@pytest.mark.parametrize("how", [["--amp-compare"], ["--amp-compare=99"], [GATED]], ids=" ".join)
def test_a_missing_baseline_is_told_and_fails_under_strict(
    sleeping: pytest.Pytester, how: list[str]
) -> None:
    told = sleeping.runpytest(*TIMED, *how)
    told.assert_outcomes(passed=1)
    told.stdout.fnmatch_lines(["*no baseline: there is no *"])
    strict = sleeping.runpytest(*TIMED, *how, "--amp-strict=baseline")
    strict.assert_outcomes(failed=1)
    strict.stdout.fnmatch_lines(["*AmpInconclusive: compare:speedup: *"])


@pytest.mark.parametrize("workers", [(), ("-n", "2", "--dist=each")])
@pytest.mark.slow
def test_an_unreadable_run_is_told_once_at_the_end(
    saved: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    stored(saved)[0].with_name("0002_x.json").write_text("{")
    result = saved.runpytest(*TIMED, "--amp-compare", *workers)
    notes = [line for line in result.outlines if line.startswith("note: ")]
    assert len(notes) == 1
    assert "0002_x.json: is not complete JSON" in notes[0]


def test_many_unreadable_runs_are_told_in_a_few_lines(saved: pytest.Pytester) -> None:
    for number in range(2, 12):
        stored(saved)[0].with_name(f"{number:04}_x.json").write_text("{")
    result = saved.runpytest(*TIMED, "--amp-compare")
    notes = [line for line in result.outlines if line.startswith("note: ")]
    assert len(notes) == 4
    assert notes[-1] == ("note: and 7 more that can't be read: `pytest-amp history` names them all")


def test_a_json_report_of_another_run_is_a_baseline(saved: pytest.Pytester) -> None:
    (saved.path / "amp.json").rename(saved.path / "before.json")
    result = saved.runpytest(*KEPT, "--amp-compare=before.json", GATED)
    result.assert_outcomes(passed=1)
    assert read(saved)["tests"][0]["baseline"]["run"] == "before.json"


def test_settings_of_the_ini_file_are_in_force(saved: pytest.Pytester) -> None:
    saved.makeini("[pytest]\namp_compare_fail = speedup:10%\namp_compare_branch = nowhere")
    result = saved.runpytest(*KEPT)
    assert "no baseline: " in result.stdout.str()
    assert "of branch nowhere" in result.stdout.str()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("speed:10%", "is not METRIC:PCT with a metric of speedup, memory, loss"),
        ("speedup", "write for example speedup:10%"),
        ("speedup:much", "'much' is not a percentage from 0 to below 100"),
        ("speedup:-5%", "a percentage from 0 to below 100"),
        ("speedup:100%", "a percentage from 0 to below 100"),
        ("memory:-5%", "a percentage from 0 to 10000"),
        ("speedup:10%,speedup:90%", "speedup is limited twice"),
        ("loss:nan%", "a percentage from 0 to 10000"),
    ],
)
def test_a_wrong_limit_is_a_usage_error(pytester: pytest.Pytester, value: str, said: str) -> None:
    result = pytester.runpytest(f"--amp-compare-fail={value}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--amp-compare-fail" in result.stderr.str()
    assert said in result.stderr.str()


def test_nothing_is_looked_up_where_nobody_compares(saved: pytest.Pytester) -> None:
    saved.runpytest(*KEPT)
    assert json.loads((saved.path / "amp.json").read_text())["tests"][0]["baseline"] is None
    assert not list(saved.path.glob(".benchmarks/.amp-index*"))


def test_a_test_that_changes_its_folder_finds_its_baseline(
    saved: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (saved.path / "test_it.py").read_text()
    moved = source.replace("(amp_benchmark):", "(amp_benchmark, tmp_path, monkeypatch):\n"
                           "    monkeypatch.chdir(tmp_path)")  # fmt: skip
    saved.makepyfile(test_it=moved)
    monkeypatch.setenv("AMP_SLOWER", "1.5")
    for reference in ([], ["--amp-compare=.benchmarks"]):
        saved.runpytest(*TIMED, GATED, *reference).assert_outcomes(failed=1)


@pytest.mark.parametrize("option", ["--amp-compare-branch=nowhere", "--amp-compare-exact"])
def test_each_way_to_ask_for_a_comparison_makes_one(sleeping: pytest.Pytester, option: str) -> None:
    result = sleeping.runpytest(*TIMED, option, "--amp-strict=baseline")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*--amp-strict fails a test without an answer: compare:speedup"])


def test_a_quiet_run_tells_of_a_missing_baseline(sleeping: pytest.Pytester) -> None:
    result = sleeping.runpytest("-q", *TIMED, GATED)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["1 test with no baseline: there is no passing result of this*"])


@pytest.mark.parametrize(
    ("output", "reference"),
    [
        ("amp.json", "amp.json"), ("amp.json", "./amp.json"), ("amp.json", "*.json"),
        ("amp.json", "**/amp.json"), ("reports/amp.json", "reports"),
        ("reports/deep/amp.json", "reports"), ("reports/deep/amp.json", "repo*"),
        ("../amp.json", "../*.json"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("exists", [True, False])
def test_a_report_that_would_write_over_the_baseline_is_refused(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    output: str,
    reference: str,
    exists: bool,
) -> None:
    here = pytester.path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    path = here / output
    if exists:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("kept")
    result = pytester.runpytest(f"--amp-json={output}", f"--amp-compare={reference}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*would overwrite what --amp-compare=* compares with*"])
    assert path.exists() is exists


@pytest.mark.parametrize("reference", ["old/*.json", "old.json", "newest", "7"])
def test_a_report_elsewhere_is_none_of_them(pytester: pytest.Pytester, reference: str) -> None:
    result = pytester.runpytest("--amp-json=old/deep/new.json", f"--amp-compare={reference}")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_limits_that_are_given_one_by_one_add_up(saved: pytest.Pytester) -> None:
    limits = ("--amp-compare-fail=speedup:10%", "--amp-compare-fail=memory:5%")
    saved.runpytest(*KEPT, *limits, "-v").stdout.fnmatch_lines(["*speedup:10%,memory:5%*"])
    assert gate(read(saved)["tests"][0], "compare:memory")["verdict"] == "pass"


@pytest.mark.parametrize("reference", ["mine", "m*e", "0002_mine.json", "000[2]_*"])
def test_a_named_save_is_found_by_its_name(saved: pytest.Pytester, reference: str) -> None:
    saved.runpytest(*TIMED, "--benchmark-save=mine", "--amp-max-time=3")
    saved.runpytest(*KEPT, f"--amp-compare={reference}")
    assert read(saved)["tests"][0]["baseline"]["run"] == "0002"


def test_the_heading_names_what_is_compared_with(saved: pytest.Pytester) -> None:
    result = saved.runpytest(*TIMED, "--amp-compare")
    result.stdout.fnmatch_lines(["since: the speedup's change since run 0001 of 20*"])


def test_a_comparison_that_breaks_loses_no_measurement(
    saved: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(Baselines, "of", broken)
    saved.runpytest(*KEPT, "--amp-compare").assert_outcomes(failed=1)
    [test] = read(saved)["tests"]
    assert test["verdict"] == "error"
    assert test["speedup"]["value"] == pytest.approx(2.0)


def test_the_command_line_s_limit_beats_addopts_metric_by_metric(saved: pytest.Pytester) -> None:
    saved.makeini("[pytest]\naddopts = --amp-compare-fail=speedup:10%,memory:5%")
    result = saved.runpytest(*KEPT, "--amp-compare-fail=speedup:20%", "-v")
    result.stdout.fnmatch_lines(["*speedup:20%,memory:5%*"])


def test_a_reference_to_files_needs_no_storage_that_is_a_folder(
    saved: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    (saved.path / "amp.json").rename(saved.path / "before.json")

    def no_folder(_: object) -> None:
        raise ValueError("is no folder")

    monkeypatch.setattr(compare, "storage_of", no_folder)
    saved.runpytest(*TIMED, "--amp-json=amp.json", "--amp-compare=before.json")
    assert read(saved)["tests"][0]["baseline"]["run"] == "before.json"
    result = saved.runpytest(*TIMED, "--amp-compare")
    result.stdout.fnmatch_lines(["*no baseline: is no folder"])
