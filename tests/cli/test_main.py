"""The command line: what it prints, its exit codes, and what it does not import."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from types import SimpleNamespace

import pytest

from pytest_amp.cli import bisect
from pytest_amp.cli import main as cli
from pytest_amp.codes import CODES

COMMAND = [sys.executable, "-m", "pytest_amp.cli"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)


def test_it_is_installed_as_pytest_amp() -> None:
    (script,) = entry_points(group="console_scripts", name="pytest-amp")
    assert script.load() is cli.main


def test_rules_lists_each_with_its_level(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rules"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(CODES)
    for line, (code, row) in zip(lines, CODES.items(), strict=True):
        assert line.split()[:3] == [code, row.name, row.severity]


def test_a_narrow_terminal_has_the_summary_below(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    cli.main(["rules"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    below = lines[1 + next(i for i, line in enumerate(lines) if line.startswith("AMP101"))]
    assert below == "        Not one eligible operation of the amp arm ran in the amp dtype."


@pytest.mark.parametrize("rule", ["AMP203", "amp203", "modified-before-unscale", "before-unsc"])
def test_explain_prints_one_in_full(rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", rule]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("AMP203 modified-before-unscale (error)\n")
    for heading in ("WHEN IT SPEAKS", "WHY IT HURTS", "FAULTY", "FIX", "REFERENCE"):
        assert f"\n{heading}\n" in shown
    assert "    scaler.unscale_(optimizer)" in shown


@pytest.mark.parametrize(("part", "count"), [("AMP5", 3), ("scaler", 4), ("amp40", 6)])
def test_explain_lists_those_that_a_part_may_mean(
    part: str, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["explain", part]) == 0
    assert len(capsys.readouterr().out.splitlines()) == count


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("AMP203x", "did you mean AMP203"),
        ("modified-before-unscaled", "did you mean AMP203"),
        ("pizza", "no rule 'pizza'; `pytest-amp rules` lists them all"),
        ("", "no rule ''"),
    ],
)
def test_explain_of_something_else_is_a_usage_error(
    rule: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["explain", rule]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert said in captured.err


def test_bisect_hands_over_the_test_and_what_is_for_pytest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = SimpleNamespace(arguments=None)

    def main(nodeid: str, more: list[str], say: object) -> int:
        called.arguments = (nodeid, more)
        return 1

    monkeypatch.setattr(bisect, "main", main)
    assert cli.main(["bisect", "test_it.py::test_step", "--", "-p", "no:x"]) == 1
    assert called.arguments == ("test_it.py::test_step", ["-p", "no:x"])


@pytest.mark.parametrize("arguments", [[], ["fly"], ["explain"], ["bisect"]])
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    ended = run(*arguments)
    assert ended.returncode == 2
    assert "usage: pytest-amp" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_texts_need_no_torch_and_no_pytest() -> None:
    code = (
        "import sys; from pytest_amp.cli import main; main.main(['explain', 'AMP101']); "
        "print(sorted({'torch', 'numpy', 'pandas', 'pytest'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


@pytest.mark.skipif(os.name == "nt", reason="pipes end differently there")
def test_a_pipe_that_ends_early_is_no_error() -> None:
    line = f"{sys.executable} -m pytest_amp.cli.main explain AMP203 | true"
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0
    assert not ended.stderr
