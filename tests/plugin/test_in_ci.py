"""What a CI system gets to read: the summary in Markdown, annotations, and GitLab's report."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.project import QUICK, STEP

TESTS = """
import pytest, torch
import torch.nn.functional as F

@pytest.mark.amp
def test_passing(model, optimizer, batch):
    return F.cross_entropy(model(batch[0]), batch[1])

@pytest.mark.amp(min_memory_reduction=0.99)
def test_failing(model, optimizer, batch):
    return F.cross_entropy(model(batch[0]), batch[1])

@pytest.mark.amp
def test_nan(model, optimizer, batch):
    out = model(batch[0])
    if out.dtype != torch.float32:
        out = out / 0
    return F.cross_entropy(out, batch[1])
"""


@pytest.fixture
def summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file for a step's summary."""
    path = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    return path


def annotations(result: pytest.RunResult) -> list[str]:
    return [line for line in result.outlines if line.startswith("::")]


# The summary


def test_md_writes_the_summary_and_says_so(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=TESTS)
    result = project.runpytest("--amp-md=out/amp.md", *QUICK)
    text = (project.path / "out" / "amp.md").read_text("utf-8")
    assert text.startswith("## ❌ Mixed precision: 2 failed, 1 passed\n")
    assert "pytest test_it.py::test_failing --amp-static --amp-steps=2\n" in text.replace(
        "--amp-steps=2 --amp-static", "--amp-static --amp-steps=2"
    )
    result.stdout.fnmatch_lines(["written: out/amp.md"])


def test_a_path_that_cannot_be_written_to_is_told_before_anything_is_measured(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(test_it=STEP)
    (project.path / "file").write_text("")
    for option in ("--amp-md", "--amp-codequality"):
        result = project.runpytest(f"{option}=file/amp", *QUICK)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"ERROR: {option}=file/amp: can't write there: *"])


def test_a_step_s_summary_is_added_behind_what_is_there(
    project: pytest.Pytester, summary: Path
) -> None:
    project.makepyfile(test_it=TESTS)
    summary.write_text("earlier\n", "utf-8")
    project.runpytest(*QUICK)
    text = summary.read_text("utf-8")
    assert text.startswith("earlier\n\n## ❌ Mixed precision: 2 failed, 1 passed\n")


def test_summary_off_leaves_it_alone(project: pytest.Pytester, summary: Path) -> None:
    project.makepyfile(test_it=STEP)
    project.runpytest("--amp-summary=off", *QUICK)
    assert not summary.exists()


def test_a_run_without_amp_tests_leaves_it_alone(project: pytest.Pytester, summary: Path) -> None:
    project.makepyfile(test_it="def test_it(): pass")
    project.runpytest()
    assert not summary.exists()


def test_a_run_whose_gates_found_no_test_is_told_there(
    project: pytest.Pytester, summary: Path
) -> None:
    project.makepyfile(test_it="def test_it(): pass")
    project.runpytest("--amp-min-speedup=2")
    assert "**NOT GATED**: no amp test ran" in summary.read_text("utf-8")


@pytest.mark.needs("xdist")
def test_workers_leave_it_to_the_controller(project: pytest.Pytester, summary: Path) -> None:
    project.makepyfile(test_it=TESTS)
    project.runpytest_subprocess("-n1", *QUICK)
    text = summary.read_text("utf-8")
    assert text.count("## ❌ Mixed precision: 2 failed, 1 passed") == 1


def test_a_fresh_process_leaves_it_to_the_run_that_asked_it(
    project: pytest.Pytester, summary: Path
) -> None:
    project.makepyfile(test_it=STEP)
    project.runpytest_subprocess(
        "--amp-steps=2", "--amp-max-time=2", "--amp-min-speedup=0.01", "--amp-confirm=all"
    )
    assert summary.read_text("utf-8").count("Mixed precision") == 1


def test_further_ranks_leave_it_to_the_first(
    project: pytest.Pytester, summary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    project.makepyfile(test_it=STEP)
    project.runpytest(*QUICK)
    assert not summary.exists()


def test_a_summary_that_cannot_be_written_fails_nothing(
    project: pytest.Pytester, summary: Path
) -> None:
    summary.mkdir()
    project.makepyfile(test_it=STEP)
    result = project.runpytest(*QUICK)
    assert result.ret == pytest.ExitCode.OK
    result.stderr.fnmatch_lines(["pytest-amp: GITHUB_STEP_SUMMARY could not be written: *"])


# Annotations


def test_errors_and_failed_gates_are_annotated_at_the_user_s_line_in_github_s_jobs(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project.makepyfile(test_it=TESTS)
    lines = path.read_text("utf-8").splitlines()
    assert annotations(project.runpytest(*QUICK)) == []
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    found = annotations(project.runpytest(*QUICK))
    at = {
        name: lines.index(line) + 1
        for name, line in (
            ("failing", "@pytest.mark.amp(min_memory_reduction=0.99)"),
            ("nan", "        out = out / 0"),
        )
    }
    (failing,) = [each for each in found if "test_failing" in each]
    assert failing.startswith(
        f"::error file=test_it.py,line={at['failing']},title=mixed precision%3A memory_reduction"
        "::test_it.py::test_failing: memory_reduction 0%25 is below 99%25"
    )
    nan = [each for each in found if "test_nan" in each]
    assert any(
        each.startswith(f"::error file=test_it.py,line={at['nan']},title=AMP") for each in nan
    ), nan
    assert not [each for each in found if "test_passing" in each]


def test_a_file_is_named_from_the_top_of_the_repository(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makepyfile(test_it=TESTS)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(project.path.parent))
    (failing,) = [each for each in annotations(project.runpytest(*QUICK)) if "_failing" in each]
    assert f"file={project.path.name}/test_it.py," in failing


def test_without_a_ci_system_s_word_git_knows_the_top(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = project.mkdir("below")
    (below / "pytest.ini").write_text("[pytest]\n")
    for name, text in (
        ("conftest.py", (project.path / "conftest.py").read_text()),
        ("test_it.py", TESTS),
    ):
        (below / name).write_text(text, "utf-8")
    subprocess.run(["git", "init", "-q"], cwd=project.path, check=True)
    monkeypatch.chdir(below)
    project.runpytest_subprocess("--amp-codequality=../found.json", *QUICK)
    paths = {each["location"]["path"] for each in quality(project, "found.json")}
    assert paths == {"below/test_it.py"}


@pytest.mark.parametrize("mark", ["xfail", "xfail(strict=True)"])
def test_a_failure_that_is_expected_is_no_annotation(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, mark: str
) -> None:
    project.makepyfile(test_it=TESTS.replace("@pytest.mark.amp\ndef test_nan",
                                             f"@pytest.mark.{mark}\n@pytest.mark.amp\n"
                                             "def test_nan"))  # fmt: skip
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    found = annotations(project.runpytest(*QUICK))
    assert len(found) == 1
    assert "test_failing" in found[0]


def test_gates_that_were_left_unasserted_are_no_error_there(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makepyfile(
        test_it="""
        import pytest

        @pytest.mark.amp(min_memory_reduction=0.99)
        def test_unchecked(amp_benchmark, setup):
            amp_benchmark(setup, check=False)
        """
    )
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert annotations(project.runpytest("--amp-codequality=found.json", *QUICK)) == []
    assert {each["severity"] for each in quality(project, "found.json")} == {"minor"}


HOSTILE = "a|b`c`</details> @team, x::y %0A 50% \\n::error::x"


def hostile(test: str = TESTS) -> str:
    """The tests, each with an id that is made to break out of wherever it is written."""
    return test.replace(
        "(model, optimizer, batch)", "(model, optimizer, batch, case)"
    ).replace("@pytest.mark.amp", f"@pytest.mark.parametrize('case', [1], ids=[{HOSTILE!r}])\n"
                                  "@pytest.mark.amp")  # fmt: skip


def test_a_hostile_id_stays_within_its_annotation(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makepyfile(test_it=TESTS)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    usual = annotations(project.runpytest(*QUICK))
    project.makepyfile(test_it=hostile())
    found = annotations(project.runpytest(*QUICK))
    assert len(found) == len(usual) > 0
    for each in found:
        command, _, message = each.removeprefix("::").partition("::")
        name, _, properties = command.partition(" ")
        assert name == "error"
        assert [pair.partition("=")[0] for pair in properties.split(",")] == [
            "file", "line", "title",
        ]  # fmt: skip
        assert "%250A 50%25" in message


# GitLab


def quality(project: pytest.Pytester, name: str = "quality.json") -> Any:
    return json.loads((project.path / name).read_text("utf-8"))


def test_code_quality_has_what_gitlab_needs(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=TESTS)
    result = project.runpytest("--amp-codequality=quality.json", *QUICK)
    result.stdout.fnmatch_lines(["written: quality.json"])
    found = quality(project)
    assert len(found) >= 2
    assert len({each["fingerprint"] for each in found}) == len(found)
    for each in found:
        assert set(each) == {"description", "check_name", "fingerprint", "severity", "location"}
        assert each["severity"] in ("major", "minor")
        assert each["location"]["path"] == "test_it.py"
        assert each["location"]["lines"]["begin"] > 0
    assert {"major"} <= {each["severity"] for each in found}


def test_a_fingerprint_outlives_lines_that_move(project: pytest.Pytester) -> None:
    def prints() -> list[str]:
        project.runpytest("--amp-codequality=quality.json", *QUICK)
        return [each["fingerprint"] for each in quality(project)]

    project.makepyfile(test_it=TESTS)
    before = prints()
    project.makepyfile(test_it="# a line\n" * 3 + TESTS)
    assert prints() == before


def test_a_run_that_finds_nothing_writes_an_empty_report(project: pytest.Pytester) -> None:
    project.makepyfile(test_it="def test_it(): pass")
    project.runpytest("--amp-codequality=quality.json")
    assert quality(project) == []
