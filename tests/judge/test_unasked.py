"""What a run was to gate and asked of no test."""

from __future__ import annotations

from dataclasses import replace

from pytest_amp.judge.unasked import unasked
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import Gate, Setting

ASKED = Gate("speedup", 1.3, 1.5, 1.4, 1.6, "pass", "fine")
NOT_SET = replace(ASKED, threshold=None, verdict="not_gated")
UNKNOWN = Gate("coverage", 0.5, None, None, None, "not_gated", "unknown: a Triton kernel")
GIVEN = {"speedup": "--amp-min-speedup=1.3"}


def report(*gates: Gate, name: str = "test_it", **settings: Setting) -> AmpReport:
    return AmpReport(f"t.py::{name}", "pass", "2026-01-01", gates=gates, settings=settings)


SKIPPED = replace(report(), verdict="skipped", skip_reason="no GPU")


def test_a_gate_that_was_asked_leaves_nothing_to_say() -> None:
    assert not [*unasked([report(ASKED)], GIVEN)]
    assert not [*unasked([report(NOT_SET), report(ASKED, name="test_other")], GIVEN)]
    assert not [*unasked([report(ASKED), SKIPPED], GIVEN)]


def test_an_undecided_gate_was_asked() -> None:
    assert not [*unasked([report(replace(ASKED, verdict="inconclusive"))], GIVEN)]


def test_an_error_speaks_for_itself() -> None:
    broken = replace(report(), verdict="error")
    assert not [*unasked([broken], GIVEN)]
    assert not [*unasked([broken, SKIPPED], GIVEN)]


def test_without_any_test_the_options_are_named() -> None:
    (said,) = unasked([], {**GIVEN, "coverage": "--amp-min-coverage=0.5"})
    assert "--amp-min-speedup=1.3 and --amp-min-coverage=0.5 had no test to hold" in said
    (said,) = unasked([], {})
    assert said.startswith("no amp test ran; see that")


def test_all_skipped_tells_each_reason_once() -> None:
    other = replace(SKIPPED, nodeid="t.py::test_other")
    (said,) = unasked([SKIPPED, other], {})
    assert said == "all 2 amp tests were skipped (no GPU)"


def test_a_gate_without_a_figure_was_not_asked_and_says_why() -> None:
    (said,) = unasked([report(UNKNOWN)], {"coverage": "--amp-min-coverage=0.5"})
    assert said == "--amp-min-coverage=0.5 was asked of no test: unknown: a Triton kernel"


def test_the_markers_are_named_where_they_unset_it() -> None:
    own = Setting(None, "marker")
    (said,) = unasked([report(NOT_SET, min_speedup=own)], GIVEN)
    assert said == "--amp-min-speedup=1.3 was asked of no test: their markers unset it"


def test_a_static_run_by_name_leaves_the_speed_out() -> None:
    static = {"static": Setting(True, "cli"), "min_speedup": Setting(1.3, "cli")}
    reports = [report(NOT_SET, **static)]
    assert not [*unasked(reports, GIVEN, static=True)]
    (said,) = unasked(reports, GIVEN, static=False)
    assert said.endswith("the run is static by its ini file, and times nothing")


def test_no_threshold_in_force_anywhere() -> None:
    (said,) = unasked([report(NOT_SET)], {})
    assert said == "the one amp test has no threshold in force, so no gate was asked"
