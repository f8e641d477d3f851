"""The page in a browser: both colour schemes, a phone, a keyboard, and no network.

Skipped where Chromium or playwright is not installed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_amp.render import html
from pytest_amp.results.trend import Point, Step, Trend
from pytest_amp.results.values import Finding, Gate
from tests.helpers.saved_runs import report

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
    pytest.mark.needs("jinja2", "matplotlib"),
]

LONG = "tests/models/test_vision_transformers.py::TestBase::test_step[" + "x" * 120 + "]"
# Of two colours in rgb(): the contrast as WCAG 2 defines it.
CONTRAST = """([front, back]) => {
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    found = Finding("AMP203", "modified-before-unscale", "error", "clipped " * 30, "decoder.head")
    gate = Gate("loss_diff", 0.02, 0.1, None, None, "fail", "10% is beyond 2.0% " * 5)
    failed = replace(report(LONG), verdict="fail", findings=(found,), gates=(gate,))
    points = [
        Point(f"{n:04}", f"2026-01-{n:02}", "pass" if n < 7 else "fail",
              "2.13.0" if n < 5 else "2.14.0",
              {"speedup": 2.0 if n < 5 else 1.6, "amp_peak_bytes": 2e9, "amp_loss": 1.0})
        for n in range(1, 10)
    ]  # fmt: skip
    step = Step(4, 2.0, 1.6, ("torch 2.13.0 -> 2.14.0",))
    text = html.page(
        [
            html.Result(failed, Trend("t", points, {"speedup": [step]})),
            html.Result(report()),
        ],
        {"commit": None, "branch": None, "dirty": None, "command": None},
        "2026-01-31",
        "0.1.0",
    )
    path = tmp_path_factory.mktemp("page") / "amp.html"
    html.write(path, text)
    return path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Any]:
    """A function that opens the page and fails for what it asks for or complains of."""
    contexts = []
    asked: list[str] = []
    said: list[str] = []

    def opened(**options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert set(asked) == {address}
    assert said == []


def colours(page: Any, selector: str, background_of: str = "body") -> float:
    """The contrast of what is written there."""
    front = page.eval_on_selector(selector, "e => getComputedStyle(e).color")
    back = page.eval_on_selector(background_of, "e => getComputedStyle(e).backgroundColor")
    return float(page.evaluate(CONTRAST, [front, back]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_colour_schemes(open_page: Any, scheme: str) -> None:
    page = open_page(color_scheme=scheme)
    back = page.eval_on_selector("body", "e => getComputedStyle(e).backgroundColor")
    assert (back == "rgb(255, 255, 255)") is (scheme == "light")
    for selector in ("h1", ".soft", ".fail", ".pass", "td.name a"):
        assert colours(page, selector) >= 4.5, selector
    for selector in ("section h2", "section .soft", "section .fail", "section summary"):
        assert colours(page, selector, "section") >= 4.5, selector
    text = page.eval_on_selector("figure svg text", "e => getComputedStyle(e).fill")
    assert text == page.eval_on_selector("body", "e => getComputedStyle(e).color")


@pytest.mark.parametrize("width", [360, 500, 820, 1400])
def test_nothing_is_wider_than_the_screen(open_page: Any, width: int) -> None:
    page = open_page(viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.eval_on_selector("figure svg", "e => e.getBoundingClientRect().width") > 200


def test_a_keyboard_reaches_everything(open_page: Any) -> None:
    page = open_page()
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.tagName"))
    assert {"A", "SUMMARY", "DIV"} <= set(reached)
    page.focus("section summary")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('section details').open")
    assert page.is_visible("section details pre")
    page.keyboard.press("Enter")
    page.focus("td.name a")
    page.keyboard.press("Enter")
    page.wait_for_function("location.hash === '#test-1'")  # which comes a moment later


def test_what_is_printed_is_black_on_white_with_the_details_open(
    open_page: Any, tmp_path: Path
) -> None:
    page = open_page(color_scheme="dark")
    page.emulate_media(media="print")
    assert page.eval_on_selector("body", "e => getComputedStyle(e).color") == "rgb(0, 0, 0)"
    back = page.eval_on_selector("body", "e => getComputedStyle(e).backgroundColor")
    assert back == "rgb(255, 255, 255)"
    assert page.pdf(path=tmp_path / "amp.pdf").startswith(b"%PDF")


def test_each_figure_has_a_name_for_those_who_do_not_see_it(open_page: Any) -> None:
    page = open_page()
    names = page.eval_on_selector_all("figure", "all => all.map(e => e.ariaLabel)")
    assert f"Speedup over time of {LONG}" in names
    assert all(names)
