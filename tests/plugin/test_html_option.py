"""--amp-html: the page of a run, with what is stored of its tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.clock import TIMED, sleeping
from tests.helpers.project import CONFTEST, QUICK, STEP

pytestmark = pytest.mark.needs("jinja2", "matplotlib")

__all__ = ["sleeping"]


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_it=STEP)
    return pytester


def test_the_page_shows_the_run(project: pytest.Pytester) -> None:
    project.runpytest(*QUICK, "--amp-html=out/amp.html").assert_outcomes(passed=1)
    text = (project.path / "out" / "amp.html").read_text("utf-8")
    assert "test_it.py::test_step" in text
    assert "<code>pytest --amp-static" in text


def test_what_is_stored_of_its_tests_is_drawn(sleeping: pytest.Pytester) -> None:
    for _ in range(2):
        sleeping.runpytest(*TIMED, "--benchmark-autosave", "--amp-html=amp.html")
    text = (sleeping.path / "amp.html").read_text("utf-8")
    assert "Speedup over time" in text


@pytest.mark.parametrize("where", ["a_folder", "a_file/amp.html"])
def test_a_place_that_can_t_be_written_is_told_before_anything_runs(
    project: pytest.Pytester, where: str
) -> None:
    (project.path / "a_folder").mkdir()
    (project.path / "a_file").write_text("")
    result = project.runpytest(*QUICK, f"--amp-html={where}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"--amp-html={where}: can't write there" in result.stderr.str()


def test_it_is_written_by_the_controller_alone(project: pytest.Pytester) -> None:
    project.runpytest(*QUICK, "--amp-html=amp.html", "-n", "1").assert_outcomes(passed=1)
    text = Path(project.path / "amp.html").read_text("utf-8")
    assert text.count("<section id") == 1


def test_an_elasticsearch_storage_has_no_history_and_a_page_all_the_same(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytest_amp.plugin import compare

    def no_folder(_: object) -> Path:
        raise ValueError("no folder")

    monkeypatch.setattr(compare, "storage_of", no_folder)
    project.runpytest(*QUICK, "--amp-html=amp.html").assert_outcomes(passed=1)
    assert (project.path / "amp.html").exists()
