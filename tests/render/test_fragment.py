"""The piece of HTML for another reporter's page."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_amp.render.fragment import fragment
from pytest_amp.results.values import Failure, Finding, Gate
from tests.helpers.pages import Read
from tests.helpers.saved_runs import report

HOSTILE = [
    "</td>",
    "<script>alert(1)</script>",
    "&lt;",
    '"x',
    "a\nb",
    "\x1b[31m",
    "\u202e",
    "\ud800",
]


def test_it_has_the_verdict_the_gates_that_were_asked_the_findings_and_notes() -> None:
    finding = Finding("AMP402", "fp32-fallback", "warning", "it fell back", "net.head", "net.py:12")
    gates = (
        Gate("speedup", 1.3, 2.0, 1.9, 2.1, "pass", "2.00x is at least 1.30x"),
        Gate("coverage", None, 1.0, None, None, "not_gated", "100%"),
    )
    read = Read(fragment(report(gates=gates, findings=(finding,), notes=("look twice",))))
    assert "Mixed precision: PASS, speedup 2.00x [1.98, 2.02]" in read.text
    assert "speedupok2.00x is at least 1.30x" in read.text
    assert "100%" not in read.text
    assert "warning AMP402 fp32-fallback in net.head (net.py:12): it fell back" in read.text
    assert "note: look twice" in read.text
    assert read.tags.count("<li>") == 2


def test_a_test_without_figures_says_why() -> None:
    ended = report(verdict="error", error=Failure("amp", "parity", 3, "OSError", "no data"))
    assert "amp arm, parity, step 3, OSError: no data" in Read(fragment(ended)).text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_no_markup(text: str) -> None:
    def shown(text: str) -> Read:
        finding = Finding("AMP402", "x", "warning", f"x{text}", f"x{text}", f"x{text}:1")
        gate = Gate("speedup", 1.3, 1.0, 0.9, 1.1, "fail", f"x{text}")
        return Read(fragment(replace(report(), gates=(gate,), findings=(finding,), notes=(text,))))

    assert shown(text).tags == shown("usual").tags
    assert "\x1b" not in shown(text).text
