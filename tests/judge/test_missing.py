"""Tests that the baseline has and the run has not."""

from __future__ import annotations

from pytest_amp.judge.missing import missing
from pytest_amp.results.report import AmpReport


def ran(nodeid: str, verdict="pass", **given) -> AmpReport:
    return AmpReport(nodeid, verdict, "2026-01-02T03:04:05+00:00", **given)


def test_a_test_that_ran_is_not_missing_however_it_ended() -> None:
    for verdict in ("pass", "fail", "inconclusive", "error"):
        assert not list(missing([ran("a.py::test_a", verdict)], {"a.py::test_a": "run 0001"}))


def test_one_that_did_not_run_is_named_with_the_run_that_measured_it() -> None:
    assert list(
        missing([ran("a.py::test_a")], dict.fromkeys(["a.py::test_a", "b.py::test_b"], "run 0001"))
    ) == ["b.py::test_b was measured in run 0001, and did not run"]


def test_a_new_test_with_nearly_its_name_may_be_the_same() -> None:
    reports = [ran("a.py::test_step_of_resnet"), ran("a.py::test_other")]
    (said,) = missing(
        reports, dict.fromkeys(["a.py::test_step_of_the_resnet", "a.py::test_other"], "run 0001")
    )
    assert said.endswith("did not run; it may be a.py::test_step_of_resnet now")


def test_a_known_test_is_nobody_s_new_name() -> None:
    reports = [ran("a.py::test_step[1]")]
    (said,) = missing(
        reports, dict.fromkeys(["a.py::test_step[1]", "a.py::test_step[2]"], "run 0001")
    )
    assert said.endswith("did not run")


def test_a_skipped_one_is_named_with_its_reason() -> None:
    skipped = ran("a.py::test_a", "skipped", skip_reason="no GPU")
    assert list(missing([skipped], {"a.py::test_a": "x.json"})) == [
        "a.py::test_a was measured in x.json, and was skipped (no GPU)"
    ]


def test_a_path_in_common_makes_no_two_tests_alike() -> None:
    reports = [ran("tests/models/vision/test_models.py::test_later")]
    baseline = {"tests/models/vision/test_models.py::test_depth[2]": "run 0001"}
    (said,) = missing(reports, baseline)
    assert said.endswith("did not run")


def test_a_test_in_another_file_is_the_same_if_its_name_is() -> None:
    reports = [ran("new/b.py::test_step[2]"), ran("new/b.py::test_step[1]")]
    (said,) = missing(reports, {"old/a.py::test_step[1]": "run 0001"})
    assert said.endswith("did not run; it may be new/b.py::test_step[1] now")


def test_a_skipped_test_is_nobody_s_new_name() -> None:
    skipped = ran("a.py::test_steps", "skipped", skip_reason="no GPU")
    (said,) = missing([skipped], {"a.py::test_step": "run 0001"})
    assert said.endswith("did not run")
