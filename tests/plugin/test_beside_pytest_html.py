"""pytest-html's page has our gates and findings under each amp test."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import pytest

from tests.helpers.project import QUICK, STEP

pytestmark = pytest.mark.needs("pytest_html")

TESTS = (
    STEP
    + """
@pytest.mark.amp(min_memory_reduction=0.99)
@pytest.mark.parametrize("case", ["</script><b>|x"])
def test_failing(model, optimizer, batch, case):
    return F.cross_entropy(model(batch[0]), batch[1])

def test_ordinary():
    pass
"""
)


def page(project: pytest.Pytester, *arguments: str) -> dict[str, Any]:
    """What the page holds of each test, by its id."""
    project.runpytest_subprocess("--html=page.html", "--self-contained-html", *QUICK, *arguments)
    text = (project.path / "page.html").read_text("utf-8")
    blob = re.search(r'data-jsonblob="([^"]*)"', text)
    assert blob is not None
    tests: dict[str, Any] = json.loads(html.unescape(blob[1]))["tests"]
    return tests


def pieces(tests: dict[str, Any], name: str) -> list[str]:
    """The extras of ours of a test whose id has this in it."""
    return [
        extra["content"]
        for nodeid, results in tests.items()
        for result in results
        for extra in result["extras"]
        if name in nodeid and "Mixed precision" in extra["content"]
    ]


@pytest.mark.parametrize("how", [(), ("-n1",)], ids=["alone", "xdist"])
def test_each_amp_test_has_one_and_no_other_test_has(
    project: pytest.Pytester, how: tuple[str, ...]
) -> None:
    project.makepyfile(test_it=TESTS)
    tests = page(project, *how)
    (passing,), (failing,) = (pieces(tests, name) for name in ("test_step", "test_failing"))
    assert "<b>PASS</b>" in passing
    assert "below 99%" in failing
    assert pieces(tests, "test_ordinary") == []
