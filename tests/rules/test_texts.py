"""Each rule has its text, and docs/reference/rules.md is made of them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from pytest_amp.codes import CODES
from pytest_amp.rules import explain
from pytest_amp.rules.registry import RULES

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "rules.md"
SILENT = "does not speak in this version"


def test_the_page_is_made_of_the_texts_in_force() -> None:
    assert PAGE.read_text("utf-8") == explain.page(), "python scripts/generate_docs.py writes it"


def test_the_links_of_its_table_lead_to_its_headings() -> None:
    page = PAGE.read_text("utf-8")
    targets = {
        heading.lower().replace(" ", "-")
        for heading in re.findall(r"^## (.+)$", page, re.MULTILINE)
    }
    links = re.findall(r"\]\(#([^)]+)\)", page)
    assert len(links) == len(CODES)
    assert set(links) <= targets


@pytest.mark.parametrize("code", CODES)
class TestEach:
    def test_has_the_sections_in_order(self, code: str) -> None:
        text = explain.text(code)
        assert text.startswith(f"# {code} {CODES[code].name}\n\n")
        assert tuple(re.findall(r"^## (.+)$", text, re.MULTILINE)) == explain.SECTIONS

    def test_says_in_one_short_line_what_is_wrong(self, code: str) -> None:
        assert "\n" not in explain.summary(code)
        assert len(explain.summary(code)) <= 100
        assert explain.summary(code).endswith(".")

    def test_shows_python_that_is_python(self, code: str) -> None:
        blocks = re.findall(r"```python\n(.*?)```", explain.text(code), re.DOTALL)
        assert blocks
        for block in blocks:
            ast.parse(block)

    def test_fits_a_terminal_and_keeps_its_words(self, code: str) -> None:
        shown, text = explain.for_terminal(code), explain.text(code)
        assert "```" not in shown
        assert "## " not in shown
        prose = re.sub(r"```.*?```", "", text.partition("\n\n")[2], flags=re.DOTALL)
        words = re.findall(r"[\w/.]+", prose)
        assert set(words) <= set(re.findall(r"[\w/.]+", shown)) | set(
            re.findall(r"[\w/.]+", " ".join(explain.SECTIONS))
        )
        wrapped = [line for line in shown.splitlines() if not line.startswith("    ")]
        assert all(len(line) <= 80 or " " not in line.strip() for line in wrapped)


def test_only_a_rule_that_is_not_there_says_so() -> None:
    speaking = {rule.code for rule in RULES}
    silent = {code for code in CODES if SILENT in re.sub(r"\s+", " ", explain.text(code))}
    assert silent == set(CODES) - speaking


def test_an_unknown_code_has_no_text() -> None:
    with pytest.raises(KeyError, match="AMP999"):
        explain.text("AMP999")


def test_a_check_is_named_as_its_rule_is() -> None:
    named = {(rule.code, rule.check.__name__.replace("_", "-")) for rule in RULES}
    silent = {"AMP210"}  # reserved
    assert {(code, row.name) for code, row in CODES.items() if code not in silent} <= named
