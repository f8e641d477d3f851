"""--amp-override KEY=VALUE beats the markers; without it, what they hid is counted."""

from __future__ import annotations

import pytest

from tests.helpers.project import gate, measure

THREE = """
import pytest
import torch.nn.functional as F

@pytest.mark.amp(min_coverage=0.1, warmup=1)
@pytest.mark.parametrize("n", [1, 2])
def test_own(model, optimizer, batch, n):
    return F.cross_entropy(model(batch[0]), batch[1])

@pytest.mark.amp
def test_plain(model, optimizer, batch):
    return F.cross_entropy(model(batch[0]), batch[1])
"""


def test_an_override_beats_the_marker(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=THREE)
    result, reports = measure(
        project, "--amp-override", "min_memory_reduction=0.99", "--amp-override=min_coverage=0.2"
    )
    result.assert_outcomes(failed=3)
    for report in reports.values():
        assert report["settings"]["min_coverage"] == {"value": 0.2, "from": "override"}
        assert gate(report, "coverage")["threshold"] == 0.2
        assert gate(report, "memory_reduction")["verdict"] == "fail"
    assert reports["test_own[1]"]["settings"]["warmup"] == {"value": 1, "from": "marker"}


def test_the_last_of_two_overrides_of_one_setting_holds(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=THREE)
    _, reports = measure(project, "--amp-override=seed=1", "--amp-override=seed=2", "-k", "plain")
    assert reports["test_plain"]["settings"]["seed"]["value"] == 2


def test_an_override_of_none_takes_a_marker_s_gate_away(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=THREE)
    _, reports = measure(project, "--amp-override=min_coverage=none", "-k", "own")
    assert gate(reports["test_own[1]"], "coverage")["threshold"] is None


def test_tests_that_keep_their_own_value_are_counted(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=THREE)
    result, _ = measure(project, "--amp-min-coverage=0.3", "--amp-seed=3")
    result.stdout.fnmatch_lines(["2 tests keep their own min_coverage"])
    result.stdout.no_fnmatch_line("*keep* their own seed")


def test_what_an_override_took_from_the_markers_is_not_counted_as_their_own(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(test_it=THREE)
    result, _ = measure(project, "--amp-min-coverage=0.3", "--amp-override=min_coverage=0.2")
    result.stdout.no_fnmatch_line("*their own*")


def test_what_is_ignored_on_all_levels_together_is_hidden_by_none(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=THREE.replace("warmup=1", "ignore='AMP4'"))
    result, reports = measure(project, "--amp-ignore=AMP006")
    assert set(reports["test_own[1]"]["settings"]["ignore"]["value"]) == {"AMP4", "AMP006"}
    result.stdout.no_fnmatch_line("*their own*")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("min_speedup", "--amp-override 'min_speedup' is not KEY=VALUE"),
        (
            "min_speedpu=2",
            "--amp-override min_speedpu: unknown setting 'min_speedpu' (did you mean min_speed*",
        ),
        ("min_speedup=-2", "--amp-override min_speedup: '-2' is not a ratio*"),
        ("min_speedup=gpu=2", "--amp-override min_speedup: no device answers to 'gpu'*"),
    ],
)
def test_a_wrong_override_is_a_usage_error(
    pytester: pytest.Pytester, given: str, message: str
) -> None:
    result = pytester.runpytest("--amp-override", given)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: " + message])
