"""Which function a line of the user's source is in."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_amp.experiment.functions import around

SOURCE = """\
x = 1

class Loss:
    def forward(self, x):
        def inner(y):
            return y
        return (
            inner(x)
        )

async def later():
    pass
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "loss.py").write_text(SOURCE, "utf-8")
    return str(tmp_path / "loss.py")


@pytest.mark.parametrize(
    ("line", "name", "extent"),
    [(4, "forward", (4, 9)), (6, "inner", (5, 6)), (8, "forward", (4, 9)), (12, "later", (11, 12))],
)
def test_the_innermost_function_is_found(file, line, name, extent) -> None:
    found = around(f"{file}:{line}")
    assert (found.name, (found.first, found.last)) == (name, extent)


def test_it_knows_which_lines_are_its_own(file) -> None:
    lines = [f"{file}:3", f"{file}:4", f"{file}:9", f"{file}:10", "other.py:5"]
    assert around(f"{file}:7").lines_of(lines) == (f"{file}:4", f"{file}:9")


def test_a_line_outside_of_functions_or_of_an_unreadable_file_is_in_none(file, tmp_path) -> None:
    assert around(f"{file}:1") is None
    assert around("nowhere.py:1") is None
    (tmp_path / "broken.py").write_text("def (", "utf-8")
    assert around(f"{tmp_path / 'broken.py'}:1") is None
