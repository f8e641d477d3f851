"""What README.md shows is true: its settings table, its examples, its options."""

from __future__ import annotations

import re

import pytest

from pytest_amp.codes import CODES
from pytest_amp.rules.registry import RULES
from pytest_amp.settings import table as settings
from scripts.generate_docs import README, SETTINGS, settings_table

EXAMPLE = re.compile(r"<!-- example: (\S+) -->\n```python\n(.*?)```", re.DOTALL)


def test_the_settings_table_is_the_one_in_force() -> None:
    found = SETTINGS.search(README.read_text("utf-8"))
    assert found is not None
    assert found[0] == settings_table(), "python scripts/generate_docs.py writes it"


def test_its_ranges_of_rules_are_those_that_there_are() -> None:
    text = README.read_text("utf-8")
    ranges = re.findall(r"^\| (AMP\d{3}) to (AMP\d{3}) \|", text, re.MULTILINE)
    assert [code for first, last in ranges for code in CODES if first <= code <= last] == [*CODES]
    assert f"read by {len({rule.code for rule in RULES})} rules" in text


def test_every_option_that_is_named_exists() -> None:
    named = set(re.findall(r"--amp-[a-z-]+", README.read_text("utf-8")))
    others = {"--amp-override", "--amp-json", "--amp-html"}
    known = {entry.flag for entry in settings.TABLE} | others
    assert named
    assert named <= known


@pytest.mark.parametrize(
    ("file", "code"),
    [
        pytest.param(*example, id=example[0])
        for example in EXAMPLE.findall(README.read_text("utf-8"))
    ],
)
def test_the_examples_run_as_they_are_printed(
    pytester: pytest.Pytester, file: str, code: str
) -> None:
    pytester.path.joinpath(file).write_text(code)
    result = pytester.runpytest("-m", "amp", "--amp-static", "--amp-device=cpu")
    result.assert_outcomes(passed=1)


def test_both_ways_to_write_a_test_are_shown() -> None:
    assert len(EXAMPLE.findall(README.read_text("utf-8"))) == 2
