"""An id that is made to break out of wherever it is written, on every surface at once."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from subprocess import run

import pytest

from tests.helpers.pages import Read, of_markdown, our_extras, results_of
from tests.helpers.project import QUICK, STEP, read

pytestmark = [pytest.mark.needs("pytest_html"), pytest.mark.slow]

# Brackets, since the tests find the id between the outermost ones, are left out.
HOSTILE = (
    "a|b`c`</details></script><img src=x onerror=alert(1)> <!-- {{ 7*7 }} &lt; @team #1 *x* "
    "x::y %0A ]]> \"q\" 'q' \x1b31m ::error::x"
)
FILES = (
    "--amp-json=amp.json", "--amp-html=amp.html", "--amp-md=amp.md", "--junitxml=junit.xml",
    "--amp-codequality=quality.json", "--html=page.html", "--self-contained-html",
)  # fmt: skip


def suite(case: str) -> str:
    return STEP.replace("(model, optimizer, batch)", "(model, optimizer, batch, case)").replace(
        "@pytest.mark.amp",
        f"@pytest.mark.parametrize('case', [1], ids=[{case!r}])\n"
        "@pytest.mark.amp(min_memory_reduction=0.99)",
    )


def written(pytester: pytest.Pytester, folder: str, case: str) -> tuple[Path, pytest.RunResult]:
    """The files that a run writes whose test has this id, and what it prints."""
    pytester.makepyfile(test_it=suite(case))
    result = pytester.runpytest_subprocess(*FILES, *QUICK)
    result.assert_outcomes(failed=1)
    here = pytester.path / folder
    here.mkdir()
    for option in FILES:
        name = option.partition("=")[2]
        if name:
            (pytester.path / name).rename(here / name)
    (pytester.path / "step.md").rename(here / "step.md")
    return here, result


def markdown(file: Path) -> Read:
    return of_markdown(file.read_text("utf-8"))


def our_extra(page: Path) -> Read:
    """What we put on pytest-html's page, as a browser makes tags of it."""
    (ours,) = our_extras(results_of(page))
    return Read(ours)


def annotations(result: pytest.RunResult) -> list[str]:
    return [line for line in result.outlines if line.startswith("::")]


def test_an_id_is_text_on_every_surface(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project.path / "step.md"))
    usual, plainly = written(project, "usual", "case")
    here, result = written(project, "hostile", HOSTILE)

    # JSON: the id as pytest has it, which escapes what does not print
    (test,) = json.loads((here / "amp.json").read_text("utf-8"))["tests"]
    nodeid = test["nodeid"]
    assert nodeid == f"test_it.py::test_step[{HOSTILE.encode('unicode_escape').decode()}]"

    # The terminal
    assert "\x1b31m" not in result.stdout.str()
    assert any("test_step[a|b`c`" in line for line in result.outlines)

    # The page, the summary, the step's summary and pytest-html's page have no other tags
    for name, shown in (
        ("amp.html", lambda file: Read(file.read_text("utf-8"))),
        ("amp.md", markdown),
        ("step.md", markdown),
        ("page.html", our_extra),
    ):
        theirs, ours = shown(usual / name), shown(here / name)
        assert ours.tags == theirs.tags, name
        assert name == "page.html" or "</details></script><img src=x" in ours.text

    # JUnit's file is read by another parser, and has the properties at the case
    (case,) = ET.parse(here / "junit.xml").getroot().iter("testcase")
    assert case.attrib["name"] == nodeid.partition("::")[2]
    properties = {each.attrib["name"]: each.attrib["value"] for each in case.iter("property")}
    assert properties["amp.verdict"] == "fail"
    assert float(properties["amp.memory_reduction"]) < 0.99

    # GitHub's annotations, one line each, of which the runner takes three properties
    assert len(annotations(result)) == len(annotations(plainly)) > 0
    for line in annotations(result):
        named = line.removeprefix("::error ").partition("::")[0].split(",")
        assert [each.partition("=")[0] for each in named] == ["file", "line", "title"]

    # GitLab's report
    theirs, ours = (
        json.loads((folder / "quality.json").read_text("utf-8")) for folder in (usual, here)
    )
    assert len(ours) == len(theirs) > 0
    assert {each["location"]["path"] for each in ours} == {"test_it.py"}


def test_an_id_is_text_where_it_is_accepted(project: pytest.Pytester) -> None:
    passing = (
        suite(HOSTILE).replace("(min_memory_reduction=0.99)", "").replace("test_step", "test_gone")
    )
    project.makepyfile(test_it=passing + STEP)
    project.runpytest("--amp-json=before.json", *QUICK)
    project.makepyfile(test_it=STEP)
    project.runpytest("--amp-json=amp.json", *QUICK)
    lost = {each["nodeid"] for each in json.loads(Path("before.json").read_text())["tests"]}
    lost -= {each["nodeid"] for each in read(project)["tests"]}
    compare = (sys.executable, "-m", "pytest_amp.cli", "compare", "before.json", "amp.json")
    command = [*compare, "--fail=loss:5%"]
    assert run(command, capture_output=True, check=False).returncode == 3
    accepted = run(
        [*command, "--acknowledge", "no use", "--acknowledge-tests"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert accepted.returncode == 0, accepted.stderr
    (entry,) = json.loads(Path("amp-acknowledged.json").read_text("utf-8"))
    assert {entry["test"]} == lost
