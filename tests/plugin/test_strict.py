"""--amp-strict: an answer that is missing fails the test, each kind of it by its own name."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.project import STEP, UNDECIDED, measure

KINDS = ("device", "inconclusive", "unmeasured", "baseline")
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")

ON_CUDA = """
def test_on_cuda(amp_benchmark, cuda_device):
    raise AssertionError("reached")
"""

# Gated on the share of its matmul FLOPs, and has none.
POINTWISE = """
import pytest
import torch

@pytest.mark.amp(ignore=["AMP101"])
def test_pointwise(optimizer, model):
    return model.weight.square().mean() + model.bias.square().mean()
"""


@pytest.mark.parametrize("given", [*KINDS, "device,baseline", "inconclusive unmeasured"])
def test_each_kind_can_be_asked_for(project: pytest.Pytester, given: str) -> None:
    result = project.runpytest("--co", f"--amp-strict={given}")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_a_path_that_was_taken_for_a_kind(project: pytest.Pytester) -> None:
    result = project.runpytest("--amp-strict", "tests/")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*'tests/' is not one of all, *; before a path write --amp-strict=all"]
    )


@pytest.mark.parametrize("spelling", ["--amp-strict", "--amp-strict=all"])
def test_bare_is_all_of_them(project: pytest.Pytester, spelling: str) -> None:
    project.makepyfile(test_it=STEP)
    _, reports = measure(project, spelling)
    assert reports["test_step"]["settings"]["strict"] == {"value": sorted(KINDS), "from": "cli"}


def test_without_an_answer_a_plain_run_passes_and_says_so(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP)
    result, reports = measure(project, quick=UNDECIDED)
    result.assert_outcomes(passed=1)
    assert reports["test_step"]["verdict"] == "inconclusive"
    result.stdout.fnmatch_lines(
        ["*no answer *speedup:*", "1 test without an answer; --amp-strict*"]
    )


@pytest.mark.parametrize("strict", ["--amp-strict", "--amp-strict=inconclusive"])
def test_without_an_answer_strict_raises_what_a_rerun_can_single_out(
    project: pytest.Pytester, strict: str
) -> None:
    project.makepyfile(test_it=STEP)
    result, reports = measure(project, strict, quick=UNDECIDED)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["FAILED test_it.py::test_step - pytest_amp.AmpInconclusive: *"])
    assert reports["test_step"]["verdict"] == "inconclusive"


@pytest.mark.parametrize("other", ["device", "unmeasured", "baseline"])
def test_another_kind_lets_an_inconclusive_gate_pass(project: pytest.Pytester, other: str) -> None:
    project.makepyfile(test_it=STEP)
    result, _ = measure(project, f"--amp-strict={other}", quick=UNDECIDED)
    result.assert_outcomes(passed=1)


def test_a_gate_that_failed_is_a_regression_under_strict_too(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP)
    result, _ = measure(project, "--amp-strict", "--amp-min-memory-reduction=0.99", quick=UNDECIDED)
    result.stdout.fnmatch_lines(["FAILED test_it.py::test_step - pytest_amp.AmpRegression: *"])


def test_a_gate_with_nothing_to_hold_against_it_passes_a_plain_run(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(test_it=POINTWISE)
    result, _ = measure(project, "--amp-min-coverage=0.5")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*no answer *coverage: *"])


@pytest.mark.parametrize("strict", ["--amp-strict", "--amp-strict=unmeasured"])
def test_a_gate_with_nothing_to_hold_against_it_fails_under_strict(
    project: pytest.Pytester, strict: str
) -> None:
    project.makepyfile(test_it=POINTWISE)
    result, _ = measure(project, "--amp-min-coverage=0.5", strict)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["FAILED test_it.py::test_pointwise - pytest_amp.AmpInconclusive: coverage*"]
    )


@without_cuda
def test_a_plain_run_skips_what_needs_cuda_and_says_why(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=ON_CUDA)
    result, reports = measure(project)
    result.assert_outcomes(skipped=1)
    assert reports["test_on_cuda"]["verdict"] == "skipped"
    assert "needs a CUDA device" in reports["test_on_cuda"]["skip_reason"]


@without_cuda
@pytest.mark.parametrize("strict", ["--amp-strict", "--amp-strict=device"])
def test_strict_fails_what_needs_cuda(project: pytest.Pytester, strict: str) -> None:
    project.makepyfile(test_it=ON_CUDA)
    result, reports = measure(project, strict)
    result.assert_outcomes(errors=1)
    assert reports["test_on_cuda"]["verdict"] == "error"
    assert "needs a CUDA device" in reports["test_on_cuda"]["error"]["message"]


@without_cuda
def test_another_kind_lets_the_skip_stand(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=ON_CUDA)
    result, _ = measure(project, "--amp-strict=inconclusive,unmeasured,baseline")
    result.assert_outcomes(skipped=1)


def test_strict_changes_nothing_where_every_answer_is_there(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP)
    result, _ = measure(project, "--amp-strict", "--amp-min-coverage=0.5")
    result.assert_outcomes(passed=1)


def test_a_test_skipped_by_its_own_mark_stays_skipped(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP.replace("@pytest", "@pytest.mark.skip('later')\n@pytest", 1))
    result, reports = measure(project, "--amp-strict")
    result.assert_outcomes(skipped=1)
    assert reports["test_step"]["skip_reason"] == "later"
