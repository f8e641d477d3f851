"""pytest-html's page has our gates and findings under each amp test."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.pages import our_extras, results_of
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
    return results_of(project.path / "page.html")


@pytest.mark.parametrize("how", [(), ("-n1",)], ids=["alone", "xdist"])
def test_each_amp_test_has_one_and_no_other_test_has(
    project: pytest.Pytester, how: tuple[str, ...]
) -> None:
    project.makepyfile(test_it=TESTS)
    tests = page(project, *how)
    (passing,), (failing,) = (our_extras(tests, name) for name in ("test_step", "test_failing"))
    assert "<b>PASS</b>" in passing
    assert "below 99%" in failing
    assert not list(our_extras(tests, "test_ordinary"))
