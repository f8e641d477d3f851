"""pytest-amp plot: a picture of the history, in the format that its name ends with."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_amp.cli import main as cli
from tests.helpers.saved_runs import document, report, save

pytestmark = pytest.mark.needs("matplotlib")

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    root = tmp_path / "store"
    for day in (1, 2, 3):
        save(root, day, document(report("t.py::a", day=day), report("t.py::b", day=day)))
    save(root, 4, document(report("t.py::once", day=4)))
    return root


def plot(stored: Path, name: str, *arguments: str) -> tuple[int, Path]:
    path = stored.parent / "out" / name
    return cli.main(["plot", *arguments, f"--storage={stored}", f"--output={path}"]), path


@pytest.mark.parametrize(
    ("name", "begins"), [("h.png", b"\x89PNG"), ("h.pdf", b"%PDF"), ("h.svg", b"<?xml")]
)
def test_the_name_says_in_which_format(stored: Path, name: str, begins: bytes) -> None:
    code, path = plot(stored, name)
    assert code == 0
    assert path.read_bytes().startswith(begins)


def test_each_test_with_two_results_is_a_row(stored: Path, capsys: Captured) -> None:
    _, path = plot(stored, "h.svg")
    text = path.read_text("utf-8")
    assert "t.py::a on NVIDIA H100 in bfloat16" in text
    assert "t.py::b on" in text
    assert "once" not in text
    assert capsys.readouterr().out == f"{path}: 2 tests\n"
    plot(stored, "h.svg", "::a")
    assert "t.py::b" not in path.read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "name", "code", "said"),
    [
        (["::once"], "h.svg", 4, "there are fewer than two results"),
        (["::nothing"], "h.svg", 4, "there are fewer than two results"),
        ([], "h.xyz", 2, "Format 'xyz' is not supported"),
    ],
)
def test_what_can_t_be_drawn_is_told(
    stored: Path, capsys: Captured, arguments: list[str], name: str, code: int, said: str
) -> None:
    ended, path = plot(stored, name, *arguments)
    assert ended == code
    assert said in capsys.readouterr().err
    assert not path.exists()
