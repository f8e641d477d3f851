"""Two entries per measured test in pytest-benchmark's session, and its options honoured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_amp.results.report import AmpReport
from pytest_amp.storage import store
from tests.helpers.clock import SLEEPING, TIMED, entries, sleeping, stored
from tests.helpers.project import read

__all__ = ["sleeping"]


def test_each_arm_is_an_entry_with_its_step_times_and_the_report(
    sleeping: pytest.Pytester,
) -> None:
    sleeping.runpytest(*TIMED, "--benchmark-autosave", "--benchmark-save-data").assert_outcomes(
        passed=1
    )
    [path] = stored(sleeping)
    found = entries(path)
    assert list(found) == ["test_step[fp32]", "test_step[amp]"]
    for arm in ("fp32", "amp"):
        entry = found[f"test_step[{arm}]"]
        report = entry["extra_info"]["amp"]
        assert entry["fullname"] == f"test_it.py::test_step[{arm}]"
        assert entry["params"] == {"arm": arm}
        assert entry["stats"]["data"] == report["arms"][arm]["step_times_s"]
        assert entry["stats"]["iterations"] == report["speedup"]["block_steps"]
        assert report["verdict"] == "pass"
        assert AmpReport.from_dict(report).to_dict() == report
    medians = [found[f"test_step[{arm}]"]["stats"]["median"] for arm in ("fp32", "amp")]
    assert medians == pytest.approx([0.004, 0.002])


def test_the_run_is_named_as_in_the_json_report(sleeping: pytest.Pytester) -> None:
    sleeping.runpytest(*TIMED, "--benchmark-autosave", "--amp-json=amp.json")
    [path] = stored(sleeping)
    run = json.loads(path.read_text())["amp"]["run"]
    assert run == json.loads((sleeping.path / "amp.json").read_text())["run"]
    assert len(run["id"]) == 32


@pytest.mark.parametrize(
    "option", ["--benchmark-save=mine", "--benchmark-json=out.json", "--benchmark-storage=other"]
)
def test_pytest_benchmarks_own_places_are_used(sleeping: pytest.Pytester, option: str) -> None:
    save = ["--benchmark-autosave"] if "storage" in option else []
    sleeping.runpytest(*TIMED, option, *save).assert_outcomes(passed=1)
    pattern = {"save": "*/*/0001_mine.json", "json": "out.json", "storage": "other/*/0001_*.json"}
    [path] = sleeping.path.glob(pattern[option[12:].partition("=")[0]])
    assert list(entries(path)) == ["test_step[fp32]", "test_step[amp]"]


def test_list_and_compare_read_them(sleeping: pytest.Pytester) -> None:
    for _ in range(2):
        sleeping.runpytest(*TIMED, "--benchmark-autosave")
    command = [sys.executable, "-m", "pytest_benchmark"]
    listed = subprocess.run([*command, "list"], capture_output=True, text=True, check=True)
    assert [line.rpartition("/")[2][:5] for line in listed.stdout.split()] == ["0001_", "0002_"]
    compared = subprocess.run([*command, "compare"], capture_output=True, text=True, check=True)
    assert compared.stdout.count("test_step[amp]") == 2


def test_a_failed_test_is_recorded_as_failed(sleeping: pytest.Pytester) -> None:
    result = sleeping.runpytest(*TIMED, "--benchmark-autosave", "--amp-min-memory-reduction=0.99")
    result.assert_outcomes(failed=1)
    [path] = stored(sleeping)
    assert entries(path)["test_step[amp]"]["extra_info"]["amp"]["verdict"] == "fail"


def test_the_last_attempt_of_a_rerun_test_is_what_stays(sleeping: pytest.Pytester) -> None:
    sleeping.runpytest(
        *TIMED, "--benchmark-autosave", "--amp-min-memory-reduction=0.99", "--reruns=1"
    )
    [path] = stored(sleeping)
    assert [each["extra_info"]["amp"]["attempt"] for each in entries(path).values()] == [2, 2]


def parametrized(project: pytest.Pytester, value: str) -> dict[str, Any]:
    """What is saved of a test with that parameter, by name."""
    marks = f'@pytest.mark.parametrize("n", [{value}])\n@pytest.mark.amp'
    source = SLEEPING.replace("@pytest.mark.amp", marks)
    project.makepyfile(test_it=source.replace("test_step(amp", "test_step(n, amp"))
    project.runpytest(*TIMED, "--benchmark-autosave").assert_outcomes(passed=1)
    [path] = stored(project)
    return entries(path)


def test_a_parametrized_test_keeps_its_case(pytester: pytest.Pytester) -> None:
    found = parametrized(pytester, "3")["test_step[3][amp]"]
    assert (found["param"], found["params"]) == ("3", {"n": 3, "arm": "amp"})


@pytest.mark.parametrize(
    "arguments",
    [
        ["--amp-static"],
        ["--benchmark-disable"],
        ["--amp-record=no"],
        ["-p", "no:benchmark"],
        ["-n", "1"],
    ],
    ids=" ".join,
)
@pytest.mark.slow
def test_nothing_is_recorded_and_the_gates_are_judged_all_the_same(
    sleeping: pytest.Pytester, arguments: list[str]
) -> None:
    save = [] if "no:benchmark" in arguments else ["--benchmark-autosave"]
    result = sleeping.runpytest_subprocess(
        *TIMED, *arguments, *save, "--amp-min-memory-reduction=0.99"
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*memory_reduction*is below 99%*"])
    assert stored(sleeping) == []
    result.stdout.no_fnmatch_line("*INTERNALERROR*")


@pytest.mark.slow
def test_only_and_skip_know_that_they_are_benchmarks(sleeping: pytest.Pytester) -> None:
    sleeping.makepyfile(test_other="def test_other(): pass")
    only = sleeping.runpytest(*TIMED, "--benchmark-only")
    only.assert_outcomes(passed=1, skipped=1)
    skip = sleeping.runpytest(*TIMED, "--benchmark-skip")
    skip.assert_outcomes(passed=1, skipped=1)
    skip.stdout.fnmatch_lines(["*1 skipped*"])


def test_a_fixture_of_ones_own_of_that_name_is_left_alone(sleeping: pytest.Pytester) -> None:
    sleeping.makeconftest("import pytest\n@pytest.fixture\ndef benchmark(): return 'mmlu'")
    sleeping.runpytest(*TIMED, "-p", "no:benchmark").assert_outcomes(passed=1)
    result = sleeping.runpytest(*TIMED, "--benchmark-autosave")
    result.assert_outcomes(passed=1)


def test_the_body_form_is_recorded_too(pytester: pytest.Pytester) -> None:
    from tests.helpers.project import CONFTEST, STEP

    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_it=STEP)
    pytester.runpytest(*TIMED, "--benchmark-autosave").assert_outcomes(passed=1)
    [path] = stored(pytester)
    assert list(entries(path)) == ["test_step[fp32]", "test_step[amp]"]


def test_pytest_benchmarks_table_is_shown_where_somebody_asks_for_it(
    sleeping: pytest.Pytester,
) -> None:
    table = "*benchmark: 2 tests*"
    sleeping.runpytest(*TIMED).stdout.no_fnmatch_line(table)
    sleeping.runpytest(*TIMED, "--benchmark-verbose").stdout.fnmatch_lines([table])
    sleeping.makepyfile(test_other="def test_other(benchmark): benchmark(int)")
    sleeping.runpytest(*TIMED).stdout.fnmatch_lines(["*benchmark: 3 tests*"])


def test_a_test_may_use_both(pytester: pytest.Pytester) -> None:
    source = SLEEPING.replace("test_step(amp_benchmark)", "test_step(amp_benchmark, benchmark)")
    pytester.makepyfile(test_it=source + "    benchmark(int)\n")
    pytester.runpytest(*TIMED, "--benchmark-autosave").assert_outcomes(passed=1)
    [path] = stored(pytester)
    assert list(entries(path)) == ["test_step", "test_step[fp32]", "test_step[amp]"]


OWN = {
    "assertion": ("    assert False", "error"),
    "skip": ("    pytest.skip('enough')", "skipped"),
    "xfail": ("    pytest.xfail('some day')", "skipped"),
}


@pytest.mark.parametrize("how", OWN)
def test_what_pytest_does_not_count_as_passed_is_no_pass_in_the_record(
    sleeping: pytest.Pytester, how: str
) -> None:
    end, verdict = OWN[how]
    sleeping.makepyfile(test_it=SLEEPING + end)
    sleeping.runpytest(*TIMED, "--benchmark-autosave", "--amp-compare", "--amp-strict=baseline")
    sleeping.runpytest(*TIMED, "--benchmark-autosave")
    found = [entries(path)["test_step[amp]"]["extra_info"]["amp"] for path in stored(sleeping)]
    assert [each["verdict"] for each in found] == ["pass", verdict]
    assert found[0]["gates"][-1]["name"] == "compare:speedup"  # which strict let not pass


def test_a_parameter_that_json_does_not_take_costs_nothing(pytester: pytest.Pytester) -> None:
    found = parametrized(pytester, '{("a", 1): 2}')["test_step[n0][amp]"]
    assert found["params"]["n"] == "{('a', 1): 2}"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_our_reports_are_written_whatever_becomes_of_pytest_benchmark_s(
    sleeping: pytest.Pytester,
) -> None:
    """Its file can be opened, as its own check wants, and nothing can be written to it."""
    result = sleeping.runpytest_subprocess(
        *TIMED, "--benchmark-json=/dev/full", "--amp-json=amp.json"
    )
    assert result.ret != 0
    assert read(sleeping)["tests"][0]["verdict"] == "pass"


def test_its_own_limits_are_in_force(sleeping: pytest.Pytester) -> None:
    sleeping.runpytest(*TIMED, "--benchmark-autosave")
    result = sleeping.runpytest_subprocess(
        *TIMED, "--benchmark-compare", "--benchmark-compare-fail=min:0.0001%"
    )
    assert "benchmark-compare-fail" not in result.stdout.str()
    alone = sleeping.runpytest_subprocess(*TIMED, "--benchmark-compare-fail=min:1%")
    assert alone.ret != 0
    assert "requires valid --benchmark-compare" in alone.stderr.str() + alone.stdout.str()


def test_a_run_that_is_too_large_to_be_read_back_is_told(
    sleeping: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MOST_BYTES", 1000)
    result = sleeping.runpytest(*TIMED, "--benchmark-autosave")
    result.stdout.fnmatch_lines(["note: 0001_*.json is * KiB, and runs larger than 1000 B are*"])


@pytest.mark.parametrize("how", [("-n", "1"), ("--benchmark-disable",)], ids=" ".join)
def test_a_save_that_comes_to_nothing_is_told(
    sleeping: pytest.Pytester, how: tuple[str, ...]
) -> None:
    result = sleeping.runpytest_subprocess(*TIMED, "--benchmark-autosave", *how)
    result.stdout.fnmatch_lines(["note: nothing is saved: pytest-benchmark is off *"])
