"""A test that the baseline measured and the run did not is told, and fails a strict run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.project import QUICK, STEP, read

TWO = STEP + STEP.replace("test_step", "test_other")
COMPARED = (*QUICK, "--amp-json=amp.json", "--amp-compare=base.json")
STRICT = (*COMPARED, "--amp-strict=baseline")


@pytest.fixture
def compared(project: pytest.Pytester) -> pytest.Pytester:
    """Two tests that were measured once."""
    project.makepyfile(test_it=TWO)
    result = project.runpytest(*QUICK, "--amp-json=base.json")
    result.assert_outcomes(passed=2)
    return project


def test_a_run_with_all_of_them_misses_none(compared: pytest.Pytester) -> None:
    result = compared.runpytest(*STRICT)
    result.assert_outcomes(passed=2)
    result.stdout.no_fnmatch_line("MISSING*")
    assert "missing" not in read(compared)


def test_a_deselected_test_is_told(compared: pytest.Pytester) -> None:
    result = compared.runpytest(*COMPARED, "-k", "other")
    assert result.ret == pytest.ExitCode.OK
    said = "test_it.py::test_step was measured in run base.json, and did not run"
    assert read(compared)["missing"] == [said]
    told = " ".join(result.stdout.str().split())
    assert f"MISSING: {said}; --amp-strict would fail the run" in told


def test_strict_fails_a_run_that_misses_a_test(compared: pytest.Pytester) -> None:
    result = compared.runpytest(*STRICT, "-k", "other")
    result.assert_outcomes(passed=1, deselected=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "--amp-strict fails the run" in " ".join(result.stdout.str().split())


def test_another_kind_of_strictness_does_not(compared: pytest.Pytester) -> None:
    result = compared.runpytest(*COMPARED, "--amp-strict=unmeasured", "-k", "other")
    assert result.ret == pytest.ExitCode.OK


def test_a_renamed_test_is_told_with_its_new_name(compared: pytest.Pytester) -> None:
    compared.makepyfile(test_it=TWO.replace("test_step", "test_steps"))
    compared.runpytest(*COMPARED)
    (said,) = read(compared)["missing"]
    assert said.endswith("did not run; it may be test_it.py::test_steps now")


def test_a_skipped_test_is_told_with_the_reason(compared: pytest.Pytester) -> None:
    skipped = TWO.replace("@pytest", "@pytest.mark.skip(reason='too slow')\n@pytest", 1)
    compared.makepyfile(test_it=skipped)
    result = compared.runpytest(*STRICT)
    (said,) = read(compared)["missing"]
    assert said.endswith("was measured in run base.json, and was skipped (too slow)")
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_a_run_that_stops_early_misses_nothing(compared: pytest.Pytester) -> None:
    compared.makepyfile(test_it="def test_no(): assert False\n", test_z=TWO)
    compared.runpytest("-x", *COMPARED, "--deselect=test_it.py::test_step")
    assert "missing" not in read(compared)


def test_without_a_comparison_nothing_is_missed(compared: pytest.Pytester) -> None:
    result = compared.runpytest(*QUICK, "-k", "other", "--amp-strict=baseline")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.no_fnmatch_line("MISSING*")


@pytest.mark.needs("xdist")
def test_the_controller_sees_what_no_worker_ran(compared: pytest.Pytester) -> None:
    result = compared.runpytest_subprocess("-n2", *STRICT, "-k", "other")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert len(read(compared)["missing"]) == 1


def test_the_summary_has_it_too(
    compared: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    compared.runpytest(*STRICT, "-k", "other")
    text = (tmp_path / "summary").read_text("utf-8")
    assert text.startswith("## ❌ Mixed precision: 1 passed\n\n**MISSING**: test_it.py::test_step ")
