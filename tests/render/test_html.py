"""The page: what it holds, that it needs nothing else, and that nothing in it runs."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from pytest_amp.render import html, trend_plots
from pytest_amp.render.plots import figures
from pytest_amp.results.report import AmpReport
from pytest_amp.results.trend import Point, Step, Trend
from pytest_amp.results.values import ArmRun, Baseline, DtypeMap, Failure, Finding, Gate, Setting
from tests.helpers.saved_runs import report

pytestmark = pytest.mark.needs("jinja2", "matplotlib")

RUN = {"commit": "c" * 40, "branch": "main", "dirty": True, "command": "pytest -m amp"}
NASTY = [
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "two\nlines", "../../etc",
    "x" * 5000, "\U0001f525", "$\\frac{1}{0}$", "{{ 7 * 7 }}", "</svg><script>1</script>",
]  # fmt: skip


def page(*reports: AmpReport, trend: Trend | None = None) -> str:
    return html.page(
        [html.Result(each, trend) for each in reports], RUN, "2026-01-31T12:00:00+00:00", "0.1.0"
    )


class Elements(HTMLParser):
    """Every tag with its attributes, and the text that is shown."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.shown = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "path", "use", "rect", "circle", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.shown += data


def faulty() -> AmpReport:
    """With something in every part of a section."""
    arms = {
        "fp32": ArmRun((0.010, 0.011), {"g": (2.0, 1.0), "d": (1.0, 0.5)}, 3 * 2**30, 0,
                       {"float32": 100}, operators={"matmul": {"float32": 3}}),
        "amp": ArmRun((0.005, 0.006), {"g": (2.0, 1.1), "d": (1.0, 0.6)}, 2**30, 0,
                      {"float16": 90, "float32": 10}, (2.0**16, 2.0**15), 1,
                      operators={"matmul": {"float16": 2, "float32": 1},
                                 "cast": {"float32 -> float16": 4}}),
    }  # fmt: skip
    return replace(
        report(),
        verdict="fail",
        arms=arms,
        gates=(Gate("loss_diff", 0.02, 0.1, None, None, "fail", "10% is beyond 2.0%"),),
        findings=(
            Finding("AMP203", "modified-before-unscale", "error", "clipped while scaled", "head"),
            Finding("AMP402", "fp32-fallback", "warning", "kept", suppressed="on purpose"),
        ),
        notes=("a note",),
        settings={"dtype": Setting("float16", "marker"), "steps": Setting(20, "default")},
        dtype_map=DtypeMap("f", "t", ("head  forward  matmul  float16  1",), True, ()),
        baseline=Baseline("0012", "f", "2026-01-01", None, "main", ("torch 2.12.0 -> 2.13.0",)),
    )


def test_a_section_holds_verdict_gates_findings_figures_and_what_is_behind_them() -> None:
    shown = Elements(page(faulty())).shown
    for text in (
        "1 failed", "test_it.py::test_step", "FAIL", "2.00x [1.98, 2.02]", "10% is beyond 2.0%",
        "AMP203 modified-before-unscale in head", "clipped while scaled",
        "What AMP203 looks for, and the fix", "scaler.unscale_(optimizer)", "[on purpose]",
        "a note", "Loss: g", "Loss: d", "Loss difference: g",
        "Step time", "Peak memory", "Loss scale",
        "float32 x3", "float16 x2, float32", "float32 -> float16 x4", "By module",
        "Compared with run 0012", "torch 2.12.0 -> 2.13.0", "head  forward  matmul", "90%",
        "commit cccccccccc on main with uncommitted changes", "pytest -m amp",
    ):  # fmt: skip
        assert text in shown, text
    assert "steps" not in re.findall(r'<th scope="row">(\w+)</th>', page(faulty()))


def test_it_is_one_file_that_asks_for_nothing() -> None:
    text = page(faulty())
    elements = Elements(text)
    for tag, attributes in elements.tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "base")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "action"):
                assert (value or "").startswith("#"), (tag, name, value)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_links_lead_to_sections_and_every_tag_is_closed() -> None:
    elements = Elements(page(faulty(), report("test_it.py::b")))
    ids = {attributes["id"] for _, attributes in elements.tags if "id" in attributes}
    links = [a["href"] for tag, a in elements.tags if tag == "a"]
    assert len(links) == 3
    assert {(link or "")[1:] for link in links} <= ids
    assert elements.open == []


@pytest.mark.parametrize("text", NASTY)
def test_whatever_a_report_says_is_text(text: str) -> None:
    strange = replace(
        faulty(),
        nodeid=text,
        notes=(text,),
        gates=(Gate(text, None, None, None, None, "not_gated", text),),
        findings=(Finding("AMP999", text, "error", text, text, text, suppressed=text),),
        settings={text: Setting(text, text)},
        skip_reason=text,
        dtype_map=DtypeMap(text, text, (text,), True, ()),
    )
    figure = {"speedup": 1.0, "amp_peak_bytes": 1.0, "amp_loss": 1.0}
    points = [
        Point(text, "2026-01-01", "pass", text, figure),
        Point(text, text, text, text, figure),
    ]
    trend = Trend(text, points, {"speedup": [Step(1, 1.0, 2.0, (text,))]})
    elements = Elements(page(strange, trend=trend))
    assert not {"script", "img"} & {tag for tag, _ in elements.tags}
    assert text.split("\n")[0] in elements.shown
    assert elements.open == []
    assert "49" not in re.findall(r"\b49\b", elements.shown) or "49" in text


def test_the_change_since_a_baseline_is_a_column_where_there_is_one() -> None:
    slower = Gate("compare:speedup", -0.1, -0.24, -0.29, -0.18, "fail", "slower")
    compared = replace(faulty(), gates=(slower,))
    assert '<td class="figure fail">-24%</td>' in page(compared, report())
    assert '<th scope="col">since</th>' in page(compared, report())
    assert '<th scope="col">since</th>' not in page(report())


def test_the_gravest_come_first() -> None:
    text = page(report("a"), replace(report("b"), verdict="fail"), report("c"))
    names = re.findall(r"<h2 [^>]*>(\w)</h2>", text)
    assert names == ["b", "a", "c"]


def test_tests_without_figures_say_why() -> None:
    bare = AmpReport("test_it.py::x", "error", "2026-01-01T00:00:00+00:00",
                     error=Failure("amp", "parity", 3, "RuntimeError", "no kernel"))  # fmt: skip
    skipped = AmpReport("test_it.py::y", "skipped", "2026-01-01T00:00:00+00:00",
                        skip_reason="needs a CUDA device")  # fmt: skip
    shown = Elements(page(bare, skipped)).shown
    assert "amp arm, parity, step 3, RuntimeError: no kernel" in shown
    assert "needs a CUDA device" in shown
    assert "no amp tests ran" in Elements(page()).shown


def point(run: int, torch: str = "2.13.0", speedup: float = 2.0, loss: float = 1.0) -> Point:
    values = {"speedup": speedup, "amp_peak_bytes": 2.0**30, "amp_loss": loss}
    return Point(f"{run:04}", f"2026-01-{run:02}", "fail" if run % 2 else "pass", torch, values)


def drawn(points: Sequence[Point], **steps: Sequence[Step]) -> dict[str, str]:
    return trend_plots.figures(Trend("t", points, steps))


def test_history_is_drawn_from_two_results_on_and_marks_releases() -> None:
    assert drawn([point(1)]) == {}
    for nothing in (math.nan, math.inf):
        assert "Speedup over time" not in drawn([point(1, speedup=nothing), point(2)])
    found = drawn([point(1), point(2), point(3, "2.14.0")])
    assert "torch 2.14.0" in found["Speedup over time"]
    assert "0001" in found["Loss over time"]
    assert "GiB" in found["Amp's peak memory over time"]


def test_steps_are_marked_with_their_size_and_told_below() -> None:
    points = [point(n, speedup=2.0 if n < 5 else 1.6) for n in range(1, 10)]
    step = Step(4, 2.0, 1.6, ("torch 2.13.0 -> 2.14.0",))
    assert "-20%" in drawn(points, speedup=[step])["Speedup over time"]
    shown = Elements(page(report(), trend=Trend("t", points, {"speedup": [step]}))).shown
    assert (
        "speedup, run 0005 of 2026-01-05: 2.00x -> 1.60x (-20%), with torch 2.13.0 -> 2.14.0"
    ) in shown
    assert "Where its history stepped" not in Elements(page(report())).shown


def test_steps_before_what_is_drawn_are_left_out() -> None:
    points = [point(1, speedup=2.0 if n < 50 else 1.6) for n in range(300)]
    assert "-20%" not in drawn(points, speedup=[Step(50, 2.0, 1.6, ())])["Speedup over time"]
    assert "-20%" in drawn(points, speedup=[Step(150, 2.0, 1.6, ())])["Speedup over time"]
    # A point without the figure does not shift the mark's place: it stands on a known one.
    points[200] = point(1, speedup=math.nan)
    assert "-20%" in drawn(points, speedup=[Step(201, 2.0, 1.6, ())])["Speedup over time"]


def test_memory_is_split_into_what_is_held_and_the_rest() -> None:
    held = {"parameters": 100, "gradients": 100, "optimizer state": 200}
    arms = {name: replace(arm, held_bytes=held) for name, arm in report().arms.items()}
    drawn = figures(report(arms=arms))["Peak memory"]
    for kind in (*held, "activations and workspace"):
        assert kind in drawn
    assert "1000 B" in drawn
    assert "gradients" not in figures(report())["Peak memory"]


def test_figures_take_the_page_s_colour_and_size() -> None:
    for svg in figures(faulty()).values():
        assert svg.startswith("<svg")
        head = svg[: svg.index(">")]
        assert "width" not in head
        assert "viewBox" in head
        assert "currentColor" in svg
        assert "#123456" not in svg
        assert "#000000" not in svg.replace("stroke: #000000; stroke-width: 0", "")


def test_losses_that_are_not_finite_are_drawn_as_far_as_they_go() -> None:
    curves = {"loss": (2.0, math.nan, math.inf, 1.0)}
    broken = replace(report(), arms={"fp32": ArmRun((), curves), "amp": ArmRun((), curves)},
                     noise_floor=math.inf)  # fmt: skip
    assert set(figures(broken)) == {"Loss"}


def difference(*amp: float, **more: object) -> str:
    """The figure of a loss that was 2.0 in fp32."""
    arms = {"fp32": ArmRun((), {"loss": (2.0,) * len(amp)}), "amp": ArmRun((), {"loss": amp})}
    gates = (Gate("loss_diff", 0.02, 0.0, None, None, "pass", ""),)
    return figures(replace(report(), arms=arms, gates=gates, **more)).get("Loss difference", "")


def test_the_loss_difference_is_shown_beside_what_rounding_does_and_the_gate_allows() -> None:
    assert difference(2.0, 2.0) == ""
    assert difference(math.nan, math.inf) == ""
    small = difference(2.0, 2.001, noise_floor=0.001)
    assert "0.1%" in small
    assert "noise floor" in small
    assert "compared" in small
    assert "allowed" not in small
    assert "allowed" in difference(2.0, 2.05, math.nan)
    assert "allowed" in difference(2.0, 2.001, noise_floor=0.01)
    assert "noise floor" not in difference(2.0, 2.05, noise_floor=None)


def test_a_write_leaves_what_was_there_where_it_fails(tmp_path, monkeypatch) -> None:
    path = tmp_path / "deep" / "amp.html"
    html.write(path, "first \ud800")
    assert path.read_bytes() == b"first \\ud800"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        html.write(path, "second")
    assert path.read_bytes() == b"first \\ud800"


def test_a_finding_without_a_line_says_why() -> None:
    reason = "it is about the machine"
    found = Finding("AMP006", "noisy-machine", "warning", "pairs spread", no_location=reason)
    shown = Elements(page(replace(faulty(), findings=(found,)))).shown
    assert f"pairs spread (no line: {reason})" in shown
