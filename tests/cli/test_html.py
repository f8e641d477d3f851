"""pytest-amp html: the newest result of each test, or those of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_amp.cli import main as cli
from tests.helpers.saved_runs import document, report, save

pytestmark = pytest.mark.needs("jinja2", "matplotlib")

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    root = tmp_path / "store"
    save(root, 1, document(report("t.py::old", day=1), report("t.py::both", day=1, speedup=1.5)))
    save(root, 2, document(report("t.py::both", day=2, speedup=2.5)))
    return root


def made(stored: Path, *arguments: str) -> str:
    path = stored.parent / "out" / "page.html"
    assert cli.main(["html", *arguments, f"--storage={stored}", "-o", str(path)]) == 0
    return path.read_text("utf-8")


def test_the_newest_result_of_each_test_is_shown(stored: Path, capsys: Captured) -> None:
    text = made(stored)
    assert text.count("<section id") == 2
    assert "2.50x [2.48, 2.52]" in text
    assert "1.50x" not in text
    assert "Speedup over time" in text
    assert capsys.readouterr().out.endswith("page.html: 2 tests\n")


def test_a_run_is_shown_by_its_number(stored: Path) -> None:
    text = made(stored, "1")
    assert text.count("<section id") == 2
    assert "1.50x" in text


def test_nothing_stored_is_told(tmp_path: Path, capsys: Captured) -> None:
    assert cli.main(["html", f"--storage={tmp_path / 'none'}"]) == 4
    assert capsys.readouterr().err == f"pytest-amp: there is no result in {tmp_path / 'none'}\n"


def test_what_is_broken_is_told_and_the_rest_is_shown(stored: Path, capsys: Captured) -> None:
    broken = save(stored, 3, "{")
    content = document(report("t.py::odd"))
    for entry in content["benchmarks"]:
        entry["extra_info"]["amp"].pop("settings", None)
    save(stored, 4, content)
    assert made(stored).count("<section id") == 2
    said = capsys.readouterr().err
    assert f"pytest-amp: {broken}: is not complete JSON" in said
    assert "t.py::odd" in said


def test_a_page_that_can_t_be_written_is_told(stored: Path, capsys: Captured) -> None:
    assert cli.main(["html", f"--storage={stored}", "-o", str(stored)]) == 2
    assert "pytest-amp: " in capsys.readouterr().err
