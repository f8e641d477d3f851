"""The summary in Markdown: what it says, and that nothing in it means more than it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_amp import units
from pytest_amp.render.markdown import Run, summary
from pytest_amp.render.markdown_text import block, code, escaped
from pytest_amp.results.gaps import Gap
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import (
    ArmRun,
    Baseline,
    Environment,
    Estimate,
    Failure,
    Finding,
    Gate,
    Setting,
)
from tests.helpers.pages import of_markdown

WIDE = 10_000_000


def run(*gaps: Gap, **named: object) -> Run:
    return Run({"command": "pytest -m amp", **named}, gaps, {"schema": 1})


def report(nodeid: str = "tests/test_net.py::test_step", verdict="fail", **given) -> AmpReport:
    gates = (
        Gate("speedup", 1.3, 1.12, 1.10, 1.14, "fail", "1.12x [1.10, 1.14] is below 1.30x"),
        Gate("coverage", 0.9, 0.95, None, None, "pass", "95% is at least 90%"),
        Gate("memory_reduction", None, 0.4, None, None, "not_gated", "40%"),
    )
    if verdict == "pass":
        gates = gates[1:]
    made = AmpReport(
        nodeid,
        verdict,
        "2026-01-02T03:04:05+00:00",
        gates=gates,
        environment=Environment(
            "NVIDIA L4", "cuda", "2.13.0", "12.8", "9.1", "570.1", "float16", native_support=True
        ),
        arms={
            "fp32": ArmRun((0.02,), {"loss": (1.0,)}, 2**30),
            "amp": ArmRun((0.018,), {"loss": (1.0,)}, 2**29),
        },
        speedup=Estimate((1.1, 1.12, 1.14), 1.10, 1.14, 4),
        coverage=0.95,
        settings={
            "min_speedup": Setting(1.3, "cli"),
            "steps": Setting(20, "default"),
            "max_loss_diff": Setting(0.02, "override"),
            "static": Setting(True, "cli"),
        },
    )
    return replace(made, **given)


def test_the_verdict_comes_first_then_what_failed_then_what_passed_in_a_fold() -> None:
    reports = [report("a.py::test_a", "pass"), report("a.py::test_b"), report("a.py::test_c")]
    lines = summary(reports, run(commit="0123456789abcdef", branch="main"), WIDE).splitlines()
    assert lines[0] == "## ❌ Mixed precision: 2 failed, 1 passed"
    place = "- NVIDIA L4, float16, torch 2.13.0, CUDA 12.8, cuDNN 9.1, driver 570.1"
    table = lines[: lines.index(place)]
    assert any(line.startswith("| ❌&#160;FAIL | <code>a.py::test_b</code> | ") for line in table)
    assert not any("test_a" in line for line in table)
    assert "- commit <code>0123456789</code> of <code>main</code>" in lines
    assert "- <code>pytest -m amp</code>" in lines
    fold = lines.index("<details><summary>1 passed</summary>")
    assert any("<code>a.py::test_a</code>" in line for line in lines[fold:])
    assert '{"schema": 1}' in lines[fold:]


def test_a_failed_test_has_its_gates_with_intervals_and_thresholds() -> None:
    text = summary([report()], run(), WIDE)
    assert (
        "| speedup | ❌&#160;FAILED | 1.12x&#160;&#91;1.10,&#160;1.14&#93; | 1.30x | "
        "1.12x &#91;1.10, 1.14&#93; is below 1.30x |"
    ) in text
    assert "| coverage | ✅&#160;ok | 95% | 90% | 95% is at least 90% |" in text
    assert "memory_reduction" not in text  # nobody asked for it
    assert "**1.12x&#160;&#91;1.10,&#160;1.14&#93;**" in text


def test_the_command_runs_the_test_alone_with_the_options_of_the_run() -> None:
    text = summary([report("a b.py::test_x[1|2]")], run(), WIDE)
    command = (
        "pytest 'a b.py::test_x[1|2]' --amp-min-speedup=1.3 "
        "--amp-override max_loss_diff=0.02 --amp-static"
    )
    assert f"```sh\n{command}\n```" in text


def test_findings_stand_with_their_line_and_what_they_are_the_cause_of() -> None:
    cause = Finding(
        "AMP402", "fp32-fallback", "warning", "a | b", "net.head", "net.py:12", confirmed=True
    )
    text = summary([report(findings=(cause,), notes=("look twice",))], run(), WIDE)
    assert (
        "- warning **AMP402** fp32-fallback in <code>net.head</code> (<code>net.py:12</code>), "
        "confirmed cause of speedup: a &#124; b"
    ) in text
    assert "- note: look twice" in text


def test_a_suppressed_finding_is_left_out() -> None:
    quiet = Finding("AMP402", "fp32-fallback", "warning", "said", suppressed="known")
    assert "AMP402" not in summary([report(findings=(quiet,))], run(), WIDE)


@pytest.mark.parametrize(
    ("gate", "told"),
    [
        (Gate("compare:speedup", None, -0.2, -0.25, -0.15, "not_gated", "-20%"), True),
        (Gate("compare:speedup", None, -0.2, -0.25, 0.1, "not_gated", "-20%"), False),
        (Gate("compare:memory", None, 0.05, None, None, "not_gated", "+5%"), True),
        (Gate("compare:memory", None, 0.005, None, None, "not_gated", "+0.5%"), False),
        (Gate("compare:loss", None, None, None, None, "not_gated", "unknown"), False),
    ],
)
def test_what_moved_is_told_though_it_passed(gate: Gate, told: bool) -> None:
    baseline = Baseline(
        "0003", "x.json", "2026-01-01", "fedcba9876", "main", ("torch 2.12.0 -> 2.13.0",)
    )
    moved = report(verdict="pass", gates=(gate,), baseline=baseline)
    before_the_fold = summary([moved], run(), WIDE).partition("<details>")[0]
    assert (moved.nodeid in before_the_fold) == told
    said = "compared with run 0003 of 2026-01-01 (commit fedcba9, main); since then torch 2.12.0"
    assert (said in before_the_fold) == told


def test_a_test_without_figures_says_why() -> None:
    broken = report(verdict="error", error=Failure("amp", "parity", 3, "OSError", "no | data"))
    skipped = report("a.py::test_s", "skipped", skip_reason="no GPU")
    text = summary([broken, skipped], run(), WIDE)
    assert "amp arm, parity, step 3, OSError: no &#124; data" in text
    assert "- ➖ SKIPPED <code>a.py::test_s</code>: no GPU" in text  # noqa: RUF001


@pytest.mark.parametrize(("strict", "sign", "word"), [(True, "❌", "fails"), (False, "⚠️", "would")])
def test_gates_that_no_test_was_asked_make_no_green_heading(strict, sign, word) -> None:
    asked = run(Gap("unasked", "--amp-min-speedup=1.3 was asked of no test", strict))
    for reports, counts in (([report(verdict="pass")], "1 passed"), ([], "nothing was measured")):
        text = summary(reports, asked, WIDE)
        assert text.startswith(f"## {sign} Mixed precision: {counts}\n\n**NOT GATED**: --amp-min")
        assert f"; --amp-strict {word}" in text


def test_of_a_test_that_was_rerun_the_last_attempt_counts() -> None:
    attempts = [report(verdict="inconclusive"), report(verdict="pass", attempt=2)]
    assert summary(attempts, run(), WIDE).startswith("## ✅ Mixed precision: 1 passed\n")


def test_what_does_not_fit_is_left_out_and_named() -> None:
    reports = [report(f"a.py::test_{number}") for number in range(200)]
    big = Run({}, (), {"tests": "x" * 100_000})
    whole = summary(reports, big, WIDE)
    assert len(whole.encode()) > 100_000
    for most in (65_000, 40_000):
        text = summary(reports, big, most)
        assert len(text.encode()) <= most
        assert text.startswith("## ❌ Mixed precision: 200 failed")
        assert "Left out for want of room: " in text
        assert "`--amp-json` has everything" in text
        assert "xxx" not in text


@pytest.mark.parametrize("most", [65_000, 5_000, 300, 0, -1])
def test_the_limit_holds_whatever_there_is(most: int) -> None:
    gaps = [Gap("missing", f"test_{n}.py::test_{'x' * 2000}", fails=True) for n in range(600)]
    named = {"command": "pytest " + "y" * 100_000, "branch": "z" * 10}
    reports = [report(f"a.py::test_{number}[{'w' * 3000}]") for number in range(300)]
    text = summary(reports, Run(named, gaps, {}), most)
    assert len(text.encode()) <= max(most, 0)


# Hostile text

HOSTILE = [
    "a|b", "`c`", "``", "</details>", "<script>alert(1)</script>", "<!--", "@team", "#12", "!3",
    "GH-1", "https://evil.example", "www.evil.example", "me@evil.example", "[a](b)", "![a](b)",
    "**x**", "__x__", "_x_", "~~x~~", "$x$", ":tada:", "\\", "&lt;", "&#124;", "&amp", "# x",
    "a\nb", "a\r\n\r\n## b", "\n```\n", "| --- |", "\x1b[31m", "\u202e", "\ud800", "- x", "1. x",
    "12) x", "+ x", "---", "===", "##", "--- ---",
    "> x", "1.", "2)", "-", "+", "#", "/merge", "    x", "\t", "{{ x }}", "::error::x", "%0A", "",
]  # fmt: skip


def everywhere(text: str) -> tuple[list[AmpReport], Run]:
    """A run in which this text is wherever a user's text can be."""
    finding = Finding("AMP402", "fp32-fallback", "warning", text, f"x{text}", f"x{text}.py:1")
    gate = Gate("speedup", 1.3, 1.12, 1.10, 1.14, "fail", f"below {text}")
    environment = Environment(
        f"x{text}", "cuda", text, text or "1", text or "1", text or "1", "float16",
        native_support=True,
    )  # fmt: skip
    baseline = Baseline(f"1{text}", text, f"2026{text}", text or "1", text or "1", (text,))
    reports = [
        report(
            f"a.py::x{text}", gates=(gate,), findings=(finding,), notes=(text,),
            environment=environment, baseline=baseline,
        ),
        report(f"b.py::x{text}", "error", error=Failure(None, text or "x", None, text, text)),
        report(f"c.py::x{text}", "skipped", skip_reason=f"x{text}"),
        report(f"d.py::x{text}", "pass", findings=(finding,)),
    ]  # fmt: skip
    named = {"command": f"pytest {text}", "commit": f"x{text}", "branch": f"x{text}"}
    gaps = (Gap("unasked", text, fails=True), Gap("missing", text, fails=False))
    return reports, Run(named, gaps, {"text": text})


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_changes_nothing_of_the_page_s_structure(text: str) -> None:
    usual, hostile = (
        of_markdown(summary(*everywhere(each), WIDE).encode("utf-8", "backslashreplace").decode())
        for each in ("usual", text)
    )
    assert hostile.tags == usual.tags


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("a1_*`|<>&[]()!@#:;./\\-+=~$\"' \n{}dw") | st.characters()))
def test_any_text_is_shown_as_it_is_and_is_no_markup(text: str) -> None:
    expected = units.printable(" ".join(text.split()))
    for made, within in ((escaped(text), []), (code(text), ["<code>", "</code>"])):
        read = of_markdown(f"x {made} x".encode("utf-8", "backslashreplace").decode())
        assert read.tags == ["<p>", *within, "</p>"]
        assert " ".join(read.text.split()) == " ".join(f"x {expected} x".split())
    at_a_line_s_start = of_markdown(
        f"{escaped(text) or 'x'}".encode("utf-8", "backslashreplace").decode()
    )
    assert at_a_line_s_start.tags == ["<p>", "</p>"]
    in_a_table = of_markdown(f"| a | b |\n| --- | --- |\n| x{escaped(text)}x | c |\n")
    assert f"x{expected}x" in in_a_table.text
    assert in_a_table.tags.count("<td>") == 2


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("a`~\n<&") | st.characters(exclude_categories=["Cs"])))
def test_any_text_stays_in_its_block(text: str) -> None:
    read = of_markdown(f"{block(text, 'sh')}\n\nafter")
    assert read.tags == ["<pre lang>", "<code>", "</code>", "</pre>", "<p>", "</p>"]


def test_people_and_issues_are_divided_by_a_tag() -> None:
    assert escaped("@team") == "&#64;<wbr>team"
    assert escaped("see #12 and !3") == "see &#35;<wbr>12 and &#33;<wbr>3"
