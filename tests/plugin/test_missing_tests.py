"""A test that the baseline measured and the run did not is told, and fails a strict run."""

from __future__ import annotations

import json
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
    result = compared.runpytest_subprocess("-n1", *STRICT, "-k", "other")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert len(read(compared)["missing"]) == 1


def test_the_summary_has_it_too(
    compared: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    compared.runpytest(*STRICT, "-k", "other")
    text = (tmp_path / "summary").read_text("utf-8")
    assert text.startswith("## ❌ Mixed precision: 1 passed\n\n**MISSING**: test_it.py::test_step ")


def test_one_that_was_accepted_as_missing_is_not_missed(compared: pytest.Pytester) -> None:
    entry = {
        "test": "test_it.py::test_step", "metric": "missing", "of": ["test_it.py::test_step"],
        "figures": {}, "until": "2200-01-01T00:00:00+00:00", "reason": "it moved",
    }  # fmt: skip
    (compared.path / "amp-acknowledged.json").write_text(json.dumps([entry]), "utf-8")
    result = compared.runpytest(*STRICT, "-k", "other")
    assert result.ret == pytest.ExitCode.OK


def test_a_change_that_was_accepted_passes_with_its_reason(compared: pytest.Pytester) -> None:
    base = compared.path / "base.json"
    document = json.loads(base.read_text("utf-8"))
    for test in document["tests"]:
        test["arms"]["amp"]["peak_bytes"] //= 2
    base.write_text(json.dumps(document), "utf-8")
    gated = (*COMPARED, "--amp-compare-fail=memory:5%")
    compared.runpytest(*gated).assert_outcomes(failed=2)
    (compared.path / "new.json").write_bytes((compared.path / "amp.json").read_bytes())
    cli = ["pytest-amp", "compare", "base.json", "new.json", "--fail=memory:5%"]
    done = compared.run(*cli, "--acknowledge", "it caches the keys now")
    assert done.ret == 0
    result = compared.runpytest(*gated, "-v")
    result.assert_outcomes(passed=2)
    assert "accepted (it caches the keys now), and since then 0%" in " ".join(
        result.stdout.str().split()
    )


def test_a_broken_file_of_what_was_accepted_is_an_error_of_usage(
    compared: pytest.Pytester,
) -> None:
    (compared.path / "amp-acknowledged.json").write_text("{", "utf-8")
    result = compared.runpytest(*COMPARED)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *amp-acknowledged.json is not a list of what was *"])
    assert compared.runpytest(*QUICK).ret == pytest.ExitCode.OK  # nothing is compared


def test_in_a_run_of_tests_by_their_ids_none_is_missing(compared: pytest.Pytester) -> None:
    result = compared.runpytest(*STRICT, "test_it.py::test_other")
    assert result.ret == pytest.ExitCode.OK
    assert compared.runpytest(*STRICT, "test_it.py", "-k", "other").ret != pytest.ExitCode.OK


def test_a_new_test_fails_strictly_until_it_is_accepted(compared: pytest.Pytester) -> None:
    compared.makepyfile(test_it=TWO + STEP.replace("test_step", "test_third"))
    compared.runpytest(*STRICT).assert_outcomes(passed=2, failed=1)
    entry = {
        "test": "test_it.py::test_third", "metric": "new", "of": ["test_it.py::test_third"],
        "figures": {}, "until": "2200-01-01T00:00:00+00:00", "reason": "a new one",
    }  # fmt: skip
    (compared.path / "amp-acknowledged.json").write_text(json.dumps([entry]), "utf-8")
    result = compared.runpytest(*STRICT)
    result.assert_outcomes(passed=3)
    assert "accepted (a new one)" in " ".join(result.stdout.str().split())


def test_after_ctrl_c_nothing_is_missing(compared: pytest.Pytester) -> None:
    compared.makepyfile(
        test_a="def test_a(): raise KeyboardInterrupt",
        test_it=TWO.replace("@pytest", "@pytest.mark.skip\n@pytest", 1),
    )
    result = compared.runpytest_subprocess(*STRICT)
    result.stdout.no_fnmatch_line("MISSING*")
