"""What the project says of itself is true: its changelog, its guide and its workflows."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import pytest_amp

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE = Path(pytest_amp.__file__).parent  # not below ROOT where the wheel is tested
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
CHANGELOG = (ROOT / "CHANGELOG.md").read_text("utf-8")
GUIDE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
WORKFLOWS = {path.stem: path for path in (ROOT / ".github" / "workflows").iterdir()}
PATHS = re.findall(r"`((?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:md|toml))`", GUIDE)
TESTS = re.findall(r"`(test_\w+)`", GUIDE)


def parsed(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def jobs(workflow: str) -> dict[str, Any]:
    found: dict[str, Any] = parsed(WORKFLOWS[workflow])["jobs"]
    return found


def test_the_changelog_begins_with_this_version_and_links_each() -> None:
    headings = re.findall(r"^## (.+)$", CHANGELOG, re.MULTILINE)
    dated = [re.fullmatch(r"\[(.+)\] - (unreleased|\d{4}-\d\d-\d\d)", each) for each in headings]
    assert None not in dated
    versions = [each[1] for each in dated if each]
    assert versions[0] == pytest_amp.__version__
    assert re.findall(r"^\[(\d.+)\]: ", CHANGELOG, re.MULTILINE) == versions


@pytest.mark.parametrize("path", sorted(set(PATHS)))
def test_what_the_guide_names_is_there(path: str) -> None:
    first, _, rest = path.partition("/")
    assert (PACKAGE / rest if first == "pytest_amp" else ROOT / path).exists()


@pytest.mark.parametrize("name", TESTS)
def test_a_test_that_the_guide_names_is_there(name: str) -> None:
    files = (ROOT / "tests").rglob("test_*.py")
    assert any(f"def {name}(" in path.read_text("utf-8") for path in files)


def test_the_guide_draws_the_house_as_it_is() -> None:
    contracts = PYPROJECT["tool"]["importlinter"]["contracts"]
    [layers] = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    drawn = re.findall(r"^([a-z]+(?: \| [a-z]+)*)  ", GUIDE, re.MULTILINE)
    assert drawn == [layer.replace("pytest_amp.", "") for layer in layers]
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__init__", "__pycache__"} == set(re.findall(r"\w+", " ".join(drawn)))


@pytest.mark.parametrize(
    "file",
    [
        "py.typed",
        "render/schema-1.json",
        "render/templates/page.html.jinja",
        "rules/texts/AMP001.md",
    ],
)
def test_what_is_no_python_is_installed_too(file: str) -> None:
    """CI runs this on the wheel."""
    assert (PACKAGE / file).is_file()


def test_the_tested_pythons_are_those_that_the_package_is_for() -> None:
    said = re.findall(r"Python :: (3\.\d+)", "\n".join(PYPROJECT["project"]["classifiers"]))
    assert jobs("tests")["newest"]["strategy"]["matrix"]["python"] == said
    assert PYPROJECT["project"]["requires-python"] == f">={said[0]}"


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_a_job_has_no_more_rights_than_it_names_and_a_limit(workflow: str) -> None:
    assert parsed(WORKFLOWS[workflow])["permissions"] == {}
    for name, job in jobs(workflow).items():
        assert "timeout-minutes" in job or "uses" in job, name


def test_what_is_released_is_what_was_tested() -> None:
    release = jobs("release")
    assert release["publish"]["needs"] == "tests"
    assert release["tests"]["uses"] == "./.github/workflows/tests.yml"


def test_ruff_is_the_same_before_a_commit_and_in_ci() -> None:
    repos = parsed(ROOT / ".pre-commit-config.yaml")["repos"]
    [revision] = [repo["rev"] for repo in repos if repo["repo"].endswith("/ruff-pre-commit")]
    assert revision.replace("v", "ruff==") in (ROOT / "constraints.txt").read_text().split()


def test_every_dependency_is_listed_with_its_lowest_version_and_its_extras() -> None:
    project = PYPROJECT["project"]
    given = {"": project["dependencies"], **project["optional-dependencies"]}
    for extra in ("core-test", "test", "docs", "dev"):
        del given[extra]
    wanted: dict[str, tuple[str, set[str]]] = {}
    for extra, requirements in given.items():
        for requirement in requirements:
            name, _, lowest = requirement.partition(">=")
            if not name.startswith("pytest-amp"):
                extras = wanted.get(name, (lowest, set()))[1]
                wanted[name] = (lowest, extras | ({extra} if extra else set()))
    page = (ROOT / "docs" / "reference" / "dependencies.md").read_text("utf-8")
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| ")][1:]
    listed = {row[0].strip(): (row[1].strip(), set(re.findall(r"`(\w+)`", row[2]))) for row in rows}
    assert listed == wanted
    assert all(row[3].strip() and row[4].strip() for row in rows)
