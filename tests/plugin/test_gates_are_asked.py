"""A run with gates is not green by accident: each way to it is told, and fails under strict.

docs/reference/gates.md lists them, each with its test of this file or of test_missing_tests.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_amp.experiment import run as experiment
from pytest_amp.lab.machine import device
from tests.helpers.project import QUICK, STEP, UNDECIDED, gate, read
from tests.plugin import test_missing_tests

GATED = STEP.replace("amp\n", "amp(min_memory_reduction={})\n")
PLAIN = "def test_plain(): pass"
ANOTHERS = GATED.format('{"*H100*": 0.2, "*MI300X*": 0.1}')


@pytest.fixture
def timed(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project whose runs are timed, and spend no time on it."""
    monkeypatch.setattr("pytest_amp.experiment.plan.UNGATED_SHARE_OF_TIME", 0.0)
    return project


def run(
    project: pytest.Pytester, *arguments: str, quick: tuple[str, ...] = ("--amp-steps=2",)
) -> tuple[pytest.RunResult, dict[str, Any]]:
    result = project.runpytest("--amp-json=amp.json", *quick, *arguments)
    return result, read(project)


def said(result: pytest.RunResult) -> str:
    """What the run printed, without its line breaks."""
    return " ".join(" ".join(result.outlines).split())


# A threshold for a device that is not there


def test_a_threshold_for_a_gpu_that_is_gone_is_told(timed: pytest.Pytester) -> None:
    timed.makepyfile(test_it=STEP.replace("amp\n", 'amp(min_speedup={"cuda": 1.3})\n'))
    result, document = run(timed)
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    assert "NOT GATED: speedup of 1 test is gated on cuda only, and ran on cpu" in said(result)
    assert gate(document["tests"][0], "speedup")["only_for"] == ["cuda"]


@pytest.mark.parametrize("strict", ["--amp-strict", "--amp-strict=device"])
def test_strict_fails_a_fall_back_from_a_gpu_that_a_threshold_names(
    timed: pytest.Pytester, strict: str
) -> None:
    timed.makepyfile(test_it=STEP.replace("amp\n", 'amp(min_speedup={"cuda": 1.3})\n'))
    result, document = run(timed, strict, "--amp-min-speedup=1.3")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    message = document["tests"][0]["error"]["message"]
    assert "fell back to cpu, because min_speedup is set for cuda and this torch" in message
    assert "--amp-device=cpu" in message


def test_strict_fails_a_threshold_that_names_no_device_which_is_there(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(test_it=GATED.format('{"cuda": 0.2}'))
    result, _ = run(project, "--amp-strict=unmeasured", "--amp-max-time=0.001")
    result.assert_outcomes(failed=1)
    assert "memory_reduction not asked gated on cuda only, and this is cpu" in said(result)


@pytest.mark.parametrize("key", ["cuda", "rocm", "xpu", "mps", "sm90", "*H100*", "*RTX 4090*"])
def test_each_way_to_name_an_accelerator_is_one(timed: pytest.Pytester, key: str) -> None:
    timed.makepyfile(test_it=GATED.format({key: 0.1, "*": -1000}))
    result, _ = run(timed, "--amp-strict=device")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert f"min_memory_reduction is set for {key}" in said(result)


@pytest.mark.parametrize(
    "thresholds",
    [
        {"*": -1000},
        {"cpu": -1000},
        {"cuda": None, "*": -1000},
        {"*Xeon*": -1000, "*EPYC*": -1000, "*": None},
        {"*AMD*": -1000, "*Intel*": -1000, "*": None},
    ],
)
def test_thresholds_for_processors_are_no_fall_back(
    project: pytest.Pytester, thresholds: dict[str, float | None]
) -> None:
    project.makepyfile(test_it=GATED.format(thresholds))
    result, _ = run(project, "--amp-strict=device,unmeasured", "--amp-max-time=0.001")
    assert result.ret == 0
    assert "NOT GATED" not in said(result)


def test_a_cpu_that_is_chosen_by_name_is_no_fall_back(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=GATED.format('{"cuda": 0.2, "cpu": -1000}'))
    result, _ = run(
        project, "--amp-strict=device,unmeasured", "--amp-device=cpu", "--amp-max-time=0.001"
    )
    assert result.ret == 0


@pytest.mark.parametrize("built", [("cuda", "13.0"), ("hip", "6.4")])
def test_strict_fails_a_run_whose_torch_is_built_for_a_gpu_that_it_can_t_see(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, built: tuple[str, str]
) -> None:
    monkeypatch.setattr(torch.version, *built)
    project.makepyfile(test_it=STEP)
    result, document = run(project, "--amp-strict=device")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert f"{built[1]} and sees no GPU" in document["tests"][0]["error"]["message"]


def test_a_torch_that_can_t_see_its_gpu_is_told_in_the_heading(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    project.makepyfile(test_it=STEP)
    result, document = run(project, quick=QUICK)
    assert result.ret == 0
    assert "(built for CUDA 13.0, no GPU visible)" in said(result)
    assert document["tests"][0]["environment"]["unseen"] == "CUDA 13.0"


@pytest.mark.parametrize("strict", ["--amp-strict", "--amp-strict=unmeasured"])
def test_a_glob_that_no_device_answers_to_is_told_and_fails_under_strict(
    project: pytest.Pytester, strict: str
) -> None:
    project.makepyfile(test_it=ANOTHERS)
    result, _ = run(project, "--amp-max-time=0.001")
    assert result.ret == 0
    assert "memory_reduction of 1 test is gated on *H100* and *MI300X* only" in said(result)
    result, _ = run(project, strict, "--amp-max-time=0.001")
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_strict_fails_fixtures_that_are_on_the_cpu_where_a_gpu_is_there(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "choose", lambda _: device.Device(torch.device("cuda", 0)))
    project.makepyfile(test_it=STEP)
    result, document = run(project, "--amp-strict=device", quick=QUICK)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "although cuda:0 is available" in document["tests"][0]["error"]["message"]


@pytest.mark.parametrize("strict", [True, False])
def test_parameters_that_are_not_on_the_device_which_was_chosen(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, strict: bool
) -> None:
    monkeypatch.setattr(experiment, "_is", lambda *_: False)
    project.makepyfile(test_it=STEP)
    result, _ = run(project, *(["--amp-strict=device"] if strict else []), quick=QUICK)
    assert "the trained parameters are on cpu, and cpu was measured" in said(result)
    assert result.ret == (pytest.ExitCode.TESTS_FAILED if strict else 0)


# No amp test at all


@pytest.mark.parametrize(
    "selection",
    [
        pytest.param(("-m", "not amp"), id="marker"),
        pytest.param(("-k", "plain"), id="keyword"),
        pytest.param(("test_plain.py",), id="path"),
        pytest.param(("--deselect=test_it.py",), id="deselect"),
        pytest.param(("--ignore=test_it.py",), id="ignore"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_gates_over_a_run_without_an_amp_test(
    project: pytest.Pytester, selection: tuple[str, ...], strict: bool
) -> None:
    project.makepyfile(test_it=STEP, test_plain=PLAIN)
    options = ("--amp-min-coverage=0.5", *(["--amp-strict"] if strict else []))
    result, document = run(project, *selection, *options)
    result.assert_outcomes(passed=1, deselected=result.parseoutcomes().get("deselected", 0))
    assert "NOT GATED: no amp test ran: --amp-min-coverage=0.5 had no test" in said(result)
    assert result.ret == (pytest.ExitCode.TESTS_FAILED if strict else 0)
    assert len(document["unasked"]) == 1


def test_a_marker_expression_that_selects_nothing_is_told_too(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP)
    result, _ = run(project, "-m", "apm", "--amp-strict")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "NOT GATED: no amp test ran" in said(result)


def test_gates_that_the_project_always_sets_leave_a_run_of_other_tests_alone(
    project: pytest.Pytester,
) -> None:
    project.makeini("[pytest]\naddopts = --amp-strict --amp-min-coverage=0.5\namp_steps = 2")
    project.makepyfile(test_it=STEP, test_plain=PLAIN)
    result = project.runpytest("test_plain.py")
    assert result.ret == 0
    assert "pytest-amp" not in result.stdout.str().partition("collected")[2]


def test_what_only_shows_the_tests_asks_nothing(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP)
    for option in ("--collect-only", "--setup-plan"):
        result = project.runpytest(option, "--amp-strict", "--amp-min-coverage=0.5")
        assert result.ret == 0
        assert "NOT GATED" not in said(result)


def test_it_is_told_once_where_workers_ran_the_tests(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP, test_plain=PLAIN)
    result, _ = run(project, "-n1", "-m", "not amp", "--amp-strict", "--amp-min-coverage=0.5")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert said(result).count("NOT GATED") == 1


# Amp tests that asked nothing


@pytest.mark.parametrize("strict", [True, False])
def test_a_run_whose_amp_tests_were_all_skipped(project: pytest.Pytester, strict: bool) -> None:
    skipped = STEP.replace("@pytest", "@pytest.mark.skipif(True, reason='no GPU')\n@pytest", 1)
    project.makepyfile(test_it=skipped, test_plain=PLAIN)
    result, _ = run(project, *(["--amp-strict"] if strict else []))
    result.assert_outcomes(passed=1, skipped=1)
    assert "NOT GATED: the one amp test was skipped (no GPU)" in said(result)
    assert result.ret == (pytest.ExitCode.TESTS_FAILED if strict else 0)


def test_a_skipped_test_beside_a_measured_one_is_as_ever(project: pytest.Pytester) -> None:
    skipped = STEP.replace("@pytest", "@pytest.mark.skip('later')\n@pytest", 1)
    project.makepyfile(test_it=STEP, test_other=skipped)
    result, _ = run(project, "--amp-strict", quick=QUICK)
    assert result.ret == 0
    assert "NOT GATED" not in said(result)


@pytest.mark.parametrize("strict", [True, False])
def test_a_run_in_which_no_threshold_is_in_force(project: pytest.Pytester, strict: bool) -> None:
    project.makepyfile(test_it=STEP.replace("amp\n", "amp(max_loss_diff=None)\n"))
    result, _ = run(project, "--amp-max-time=0.001", *(["--amp-strict"] if strict else []))
    result.assert_outcomes(passed=1)
    assert "NOT GATED: the one amp test has no threshold in force" in said(result)
    assert result.ret == (pytest.ExitCode.TESTS_FAILED if strict else 0)


@pytest.mark.parametrize("strict", [True, False])
def test_a_gate_of_the_command_line_that_every_marker_unsets(
    project: pytest.Pytester, strict: bool
) -> None:
    project.makepyfile(test_it=STEP.replace("amp\n", "amp(min_coverage=None)\n"))
    result, _ = run(
        project, "--amp-min-coverage=0.5", *(["--amp-strict"] if strict else []), quick=QUICK
    )
    result.assert_outcomes(passed=1)
    assert "--amp-min-coverage=0.5 was asked of no test: their markers unset it" in said(result)
    assert result.ret == (pytest.ExitCode.TESTS_FAILED if strict else 0)


def test_a_gate_that_one_of_the_tests_was_asked_is_fine(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP, test_other=STEP.replace("amp\n", "amp(min_coverage=None)\n"))
    result, _ = run(project, "--amp-min-coverage=0.5", "--amp-strict", quick=QUICK)
    assert result.ret == 0
    assert "NOT GATED" not in said(result)


@pytest.mark.parametrize("strict", [True, False])
def test_gates_that_failed_and_were_never_asserted(project: pytest.Pytester, strict: bool) -> None:
    project.makepyfile("def test_it(amp_benchmark, setup): amp_benchmark(setup, check=False)")
    gates = ("--amp-min-memory-reduction=0.99", *(["--amp-strict"] if strict else []))
    result, document = run(project, *gates, quick=QUICK)
    result.assert_outcomes(failed=int(strict), passed=int(not strict))
    assert document["tests"][0]["verdict"] == "fail"
    assert ("left unasserted" in said(result)) is not strict


def test_a_failure_that_the_test_expects_was_asserted(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import pytest, pytest_amp

        def test_it(amp_benchmark, setup):
            with pytest.raises(pytest_amp.AmpRegression):
                amp_benchmark(setup)
        """
    )
    result, _ = run(project, "--amp-min-memory-reduction=0.99", "--amp-strict", quick=QUICK)
    result.assert_outcomes(passed=1)


# Static runs, which are asked for by name


@pytest.mark.parametrize("strict", [(), ("--amp-strict",)])
def test_a_static_run_stays_green_and_says_what_it_leaves_out(
    project: pytest.Pytester, strict: tuple[str, ...]
) -> None:
    project.makepyfile(
        test_it=STEP.replace("amp\n", 'amp(min_speedup=1.3, min_memory_reduction={"cuda": 0.2})\n')
    )
    result, _ = run(project, "--amp-static", "--amp-min-speedup=1.5", *strict)
    assert result.ret == 0
    text = said(result)
    assert "--amp-static leaves out: speedup of 1 test, memory_reduction of 1 test" in text
    assert "NOT GATED" not in text


def test_a_static_run_whose_tests_were_all_skipped_measured_nothing(
    project: pytest.Pytester,
) -> None:
    skipped = STEP.replace("@pytest", "@pytest.mark.skip('later')\n@pytest", 1)
    project.makepyfile(test_it=skipped)
    result, _ = run(project, "--amp-static", "--amp-strict")
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_a_gate_of_the_speed_in_a_run_that_is_static_by_its_ini_file(
    project: pytest.Pytester,
) -> None:
    project.makeini("[pytest]\namp_static = yes")
    project.makepyfile(test_it=STEP)
    result, _ = run(project, "--amp-min-speedup=1.3", "--amp-strict")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "--amp-min-speedup=1.3 was asked of no test: the run is static" in said(result)


# What is mistyped


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("amp_min_speedpu", "did you mean min_speedup?"),
        ("amp-min-speedup", "the key is amp_min_speedup"),
        ("AMP_MIN_SPEEDUP", "the key is amp_min_speedup"),
        ("min_speedup", "the key is amp_min_speedup"),
        ("amp_speedup", "unknown setting 'speedup'"),
    ],
)
def test_a_mistyped_ini_key_is_an_error(project: pytest.Pytester, key: str, hint: str) -> None:
    project.makeini(f"[pytest]\n{key} = 1.3")
    result = project.runpytest("--collect-only")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*tox.ini: {key}: *{hint}*"])


def test_a_mistyped_key_in_a_toml_file_is_an_error(project: pytest.Pytester) -> None:
    project.makepyprojecttoml("[tool.pytest.ini_options]\namp_min_coverge = '0.5'")
    result = project.runpytest("--collect-only")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*pyproject.toml: amp_min_coverge: *did you mean min_coverage?*"])


@pytest.mark.parametrize("key", ["seed", "steps", "strict_amps", "device"])
def test_an_ini_key_that_may_be_another_plugin_s_is_left_to_pytest(
    project: pytest.Pytester, key: str
) -> None:
    project.makeini(f"[pytest]\n{key} = 1")
    project.makepyfile(test_plain=PLAIN)
    assert project.runpytest("-W", "ignore").ret == 0


def test_thresholds_under_a_mistyped_marker_are_an_error_of_a_run_that_gates(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(test_it=GATED.format("0.2").replace("mark.amp", "mark.apm"))
    result = project.runpytest("-m", "amp", "--amp-min-speedup=1.3", "-W", "ignore")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "@pytest.mark.apm sets min_memory_reduction, which only @pytest.mark.amp" in said(result)


def test_another_plugin_s_marker_is_left_alone(project: pytest.Pytester) -> None:
    other = "@pytest.mark.flaky(steps=3, seed=1)\ndef test_it(): pass"
    project.makepyfile(f"import pytest\n{other}\n{STEP}")
    result = project.runpytest("--amp-min-coverage=0.5", *QUICK, "-W", "ignore")
    assert result.ret == 0


# The documentation


def test_the_documentation_names_a_test_for_each_way() -> None:
    table = (Path(__file__).parents[2] / "docs" / "reference" / "gates.md").read_text("utf-8")
    rows = re.findall(r"^\| .* <!-- (test_\w+) --> \|$", table, re.MULTILINE)
    ours = {name for name in (*globals(), *vars(test_missing_tests)) if name.startswith("test_")}
    assert len(rows) >= 12
    assert set(rows) <= ours


def test_a_preset_s_gates_are_asked_of_every_test_but_a_training_s(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(test_it=STEP)
    result = project.runpytest("-m", "amp", "--amp-preset=classic", *UNDECIDED[1:], "--amp-strict")
    said = " ".join(result.stdout.str().split())
    assert "memory_reduction" in said
    assert "is below 40%" in said
    assert "accuracy" not in said
    nothing = project.runpytest("-m", "not amp", "--amp-preset=classic")
    assert "NOT GATED: no amp test ran: --amp-preset=classic had no test to hold" in " ".join(
        nothing.stdout.str().split()
    )
