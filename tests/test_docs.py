"""What README.md and docs/ show is true: their generated parts, examples, options and links."""

from __future__ import annotations

import ast
import configparser
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import pytest_amp
from pytest_amp.codes import CODES
from pytest_amp.render import json as amp_json
from pytest_amp.settings import table as settings
from scripts import generate_docs
from scripts.generate_docs import DOCS, README, ROOT

GENERATED = generate_docs.pages()
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for path in (README, *sorted(DOCS.rglob("*.md")))
}
WRITTEN = {name: text for name, text in PAGES.items() if name != "docs/reference/rules.md"}
EXAMPLE = re.compile(r"<!-- example: (\S+)(.*?) -->\n```python\n(.*?)```", re.DOTALL)
BLOCK = re.compile(r"^```(\S*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
NEWLINE = "\n"
SPAN = re.compile(r"`([^`\n]+)`")


def each(pattern: re.Pattern[str]) -> list[Any]:
    """Every match of a pattern as a test's parameter, named for its page and its line."""
    return [
        pytest.param(match, id=f"{page}:{1 + text.count(NEWLINE, 0, match.start())}")
        for page, text in WRITTEN.items()
        for match in pattern.finditer(text)
    ]


def blocks(language: str) -> list[Any]:
    return each(re.compile(rf"^```{language}\n(.*?)^```", re.DOTALL | re.MULTILINE))


# -- what is generated -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.stem)
def test_what_is_generated_is_in_force(path: Path) -> None:
    assert path.read_text("utf-8") == GENERATED[path], "python scripts/generate_docs.py writes it"


def test_each_part_that_can_be_generated_is_shown() -> None:
    shown = [
        match["name"] for text in PAGES.values() for match in generate_docs.PART.finditer(text)
    ]
    assert sorted(shown) == sorted(generate_docs.PARTS)


def test_each_key_of_the_json_report_is_described() -> None:
    schema = amp_json.schema()
    objects = [schema, *schema["$defs"].values()]
    keys = [item for one in objects for item in one.get("properties", {}).items()]
    assert keys
    assert [key for key, value in keys if "description" not in value] == []


def test_the_ranges_of_rules_are_those_that_there_are() -> None:
    text = PAGES["docs/explanation/verdict.md"]
    ranges = re.findall(r"^\| (AMP\d{3}) to (AMP\d{3}) \|", text, re.MULTILINE)
    assert [code for first, last in ranges for code in CODES if first <= code <= last] == [*CODES]


def test_everything_that_can_be_imported_is_in_the_reference() -> None:
    named = set(re.findall(r"pytest_amp\.(\w+)", PAGES["docs/reference/api.md"]))
    assert set(pytest_amp.__all__) <= named


# -- the examples ----------------------------------------------------------------------------------


@pytest.mark.parametrize("example", each(EXAMPLE))
def test_an_example_runs_as_it_is_printed(
    pytester: pytest.Pytester, example: re.Match[str]
) -> None:
    file, outcomes, code = example.groups()
    for package in re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE):
        pytest.importorskip(package)
    expected = dict(word.split("=") for word in outcomes.split()) or {"passed": "1"}
    pytester.path.joinpath(file).write_text(code)
    result = pytester.runpytest("--amp-static", "--amp-device=cpu", "--strict-markers")
    result.assert_outcomes(**{outcome: int(count) for outcome, count in expected.items()})


@pytest.mark.parametrize("block", blocks("python"))
def test_python_is_python(block: re.Match[str]) -> None:
    ast.parse(block[1])


@pytest.mark.parametrize("block", blocks("ini"))
def test_an_ini_file_is_one_that_would_be_taken(block: re.Match[str]) -> None:
    parser = configparser.ConfigParser()
    parser.read_string(block[1])
    ours = {key: value for key, value in parser["pytest"].items() if key.startswith("amp_")}
    for key, value in ours.items():
        settings.parse(settings.entry_for(key.removeprefix("amp_")), value)
    assert ours or "required_plugins" in parser["pytest"]


WORKFLOWS = {path.name: path.read_text("utf-8") for path in (ROOT / "examples" / "ci").iterdir()}


def scripts_of(name: str) -> dict[str, str]:
    """Each job's commands, by the job's name."""
    document = yaml.safe_load(WORKFLOWS[name])
    if name.startswith("github"):
        return {
            job: "\n".join(step.get("run", "") for step in each["steps"])
            for job, each in document["jobs"].items()
        }
    keys = ("before_script", "script", "after_script")
    return {
        job: "\n".join(line for key in keys for line in each.get(key, ()))
        for job, each in document.items()
        if isinstance(each, dict) and "script" in each
    }


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_has_the_jobs_that_the_page_lists(name: str) -> None:
    scripts = scripts_of(name)
    page = PAGES["docs/how-to/gate-ci-on-a-gpu.md"]
    listed = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) & {*scripts}
    assert listed == {"static", "gate", "comment", "nightly"}
    assert re.search(r"--amp-strict\s", scripts["gate"])
    assert "--amp-static" in scripts["static"]
    assert "pytest-amp history" in yaml.safe_dump(yaml.safe_load(WORKFLOWS[name]))
    assert "amp.md" in scripts["comment"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_option_in_a_workflow_exists(name: str, options_of_pytest: set[str]) -> None:
    named = set(re.findall(r"--(?:amp|benchmark)-[a-z][a-z-]*", WORKFLOWS[name]))
    assert named
    assert named <= options_of_pytest


def test_github_s_jobs_need_only_what_is_there_and_fetch_only_what_is_kept() -> None:
    jobs = yaml.safe_load(WORKFLOWS["github.yml"])["jobs"]
    for job in jobs.values():
        assert {job["needs"]} <= {*jobs} if "needs" in job else True
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])
    steps = [step for job in jobs.values() for step in job["steps"] if "uses" in step]
    kept, fetched = (
        {step["with"]["name"] for step in steps if f"/{which}-artifact@" in step["uses"]}
        for which in ("upload", "download")
    )
    assert fetched <= kept


# -- what is named ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def options_of_pytest(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    import subprocess
    import sys

    command = [sys.executable, "-m", "pytest", "--help"]
    folder = tmp_path_factory.mktemp("empty")
    shown = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return set(re.findall(r"--[a-z][a-z-]+", shown.stdout))


@pytest.mark.parametrize("page", PAGES)
def test_every_option_that_is_named_exists(page: str, options_of_pytest: set[str]) -> None:
    named = set(re.findall(r"--(?:amp|benchmark)-[a-z][a-z-]*", PAGES[page]))
    assert named <= options_of_pytest


def test_options_are_named() -> None:
    assert set(generate_docs.pytest_options()) <= {
        option for text in PAGES.values() for option in re.findall(r"--amp-[a-z-]+", text)
    }


def commands() -> Iterator[tuple[str, str]]:
    """What is shown of `pytest-amp`'s command line: each page, and the rest of the line."""
    for page, text in PAGES.items():
        lines = [line for block in BLOCK.finditer(text) for line in block[2].splitlines()]
        for line in (*lines, *SPAN.findall(BLOCK.sub("", text))):
            found = re.match(r"\s*(?:\$ )?pytest-amp +([a-z].*)", line)
            if found:
                yield page, found[1].partition(" -- ")[0]


def test_every_subcommand_that_is_named_exists_and_takes_its_options() -> None:
    parsers = generate_docs.subcommands()
    named = [(page, *line.split()) for page, line in commands()]
    for page, command, *words in named:
        assert command in parsers, page
        known = parsers[command]._option_string_actions
        assert {word for word in words if word.startswith("-")} <= set(known), (page, command)
    assert {command for _, command, *_ in named} == set(parsers)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """On GitHub; Sphinx looks at the links of the site."""
    text = BLOCK.sub("", PAGES[page])
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.MULTILINE)
            assert anchor in map(_anchor, headings), target


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_each_page_is_in_a_table_of_contents() -> None:
    listed = set()
    for page, text in PAGES.items():
        for toctree in re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL):
            lines = [line for line in toctree.splitlines() if line and line[0] != ":"]
            entries = [line.rpartition("<")[2].rstrip(">") for line in lines]
            listed |= {(Path(page).parent / f"{entry}.md").as_posix() for entry in entries}
    assert listed == set(PAGES) - {"README.md", "docs/index.md"}


def test_the_readme_is_short() -> None:
    assert len(README.read_bytes()) <= 8000
