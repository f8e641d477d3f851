"""--help, the ini file and --markers show every setting, readably."""

from __future__ import annotations

import re

import pytest

from pytest_amp.settings import parsers
from pytest_amp.settings.table import TABLE
from tests.helpers.project import STEP, measure

OPTIONS = {entry.flag for entry in TABLE} | {
    f"--amp-{name}" for name in ("override", "json", "html", "md", "codequality", "summary")
}


@pytest.fixture
def help_lines(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", "80")
    lines: list[str] = pytester.runpytest("--help").outlines
    return lines


def group_of(lines: list[str]) -> str:
    start = next(i for i, line in enumerate(lines) if line.startswith("mixed precision"))
    return "\n".join(lines[start : lines.index("", start)])


def test_help_has_one_group_with_every_option_its_default_and_how_else_to_set_it(
    help_lines: list[str],
) -> None:
    group = group_of(help_lines)
    assert set(re.findall(r"^  (--amp-[a-z-]+)", group, re.MULTILINE)) == OPTIONS
    flowed = re.sub(r"\s+", " ", group)
    for entry in TABLE:
        assert f"{entry.help} (default: {entry.default_shown})" in flowed
    assert "ini keys (amp_steps)" in flowed
    assert "cuda=1.3,cpu=1.0" in flowed


def test_help_fits_80_columns(help_lines: list[str]) -> None:
    assert max(map(len, group_of(help_lines).splitlines())) <= 80


def test_every_setting_is_an_ini_key(help_lines: list[str]) -> None:
    keys = {
        match[1] for line in help_lines if (match := re.match(r"  (amp_\w+) \(string\):", line))
    }
    assert keys == {entry.ini for entry in TABLE}


def test_what_only_the_command_line_turns_on_takes_no_value() -> None:
    switches = [entry for entry in TABLE if entry.parse is parsers.flag and not entry.marker]
    assert [entry.name for entry in switches if not entry.switch] == []
    assert switches


def test_markers_lists_every_keyword_with_its_meaning_in_80_columns(
    pytester: pytest.Pytester,
) -> None:
    lines = pytester.runpytest("--markers").outlines
    start = next(i for i, line in enumerate(lines) if line.startswith("@pytest.mark.amp("))
    shown = lines[start : lines.index("", start)]
    assert max(map(len, shown)) <= 80
    described = re.findall(r"^  (\w+) +\S", "\n".join(shown), re.MULTILINE)
    assert described == [entry.name for entry in TABLE if entry.marker]


def test_the_marker_is_registered(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP)
    project.runpytest("--strict-markers", "--co", "-q").assert_outcomes()
    assert project.runpytest("--strict-markers", "--co", "-q").ret == pytest.ExitCode.OK


def test_an_ini_key_that_is_not_set_hides_no_option(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\namp_steps =")
    project.makepyfile(test_it=STEP)
    _, reports = measure(project, "--amp-steps=3", "--amp-seed=5")
    given = reports["test_step"]["settings"]
    assert given["steps"] == {"value": 3, "from": "cli"}
    assert given["seed"] == {"value": 5, "from": "cli"}


def test_a_flag_works_from_the_ini_file(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\namp_static = true\namp_strict = device inconclusive")
    project.makepyfile(test_it=STEP)
    _, reports = measure(project, quick=("--amp-steps=2",))
    assert reports["test_step"]["settings"]["static"] == {"value": True, "from": "ini"}
    assert reports["test_step"]["settings"]["strict"]["value"] == ["device", "inconclusive"]
    assert reports["test_step"]["speedup"] is None


def test_a_pyproject_table_works_too(project: pytest.Pytester) -> None:
    project.makepyprojecttoml('[tool.pytest.ini_options]\namp_min_coverage = "0.5"')
    project.makepyfile(test_it=STEP)
    _, reports = measure(project)
    assert reports["test_step"]["settings"]["min_coverage"] == {"value": 0.5, "from": "ini"}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--amp-min-speedup=nan", "*--amp-min-speedup: *'nan' is not a ratio above 0*"),
        ("--amp-min-speedup=1e9", "*'1e9' is not a ratio above 0 and at most 1000"),
        ("--amp-min-speedup=gpu=1.3", "*no device answers to 'gpu'; valid keys are cuda,*"),
        ("--amp-dtype=float8", "*'float8' is not one of auto, float16, bfloat16"),
        ("--amp-strict=devices", "*'devices' is not one of all, device, inconclusive, *"),
        ("--amp-select=speed", "*neither a rule's code such as AMP203 nor a prefix*"),
    ],
)
def test_a_wrong_option_stops_the_run_before_anything_is_collected(
    pytester: pytest.Pytester, option: str, message: str
) -> None:
    pytester.makepyfile("raise RuntimeError('collected')")
    result = pytester.runpytest(option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: " + message])
    result.stdout.no_fnmatch_line("*collected*")


def test_a_wrong_ini_value_is_told_with_its_file_and_key(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\namp_steps = 0")
    result = pytester.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *tox.ini: amp_steps: *'0' is not a whole number from 1*"])


def test_a_path_after_a_bare_strict_is_told_as_what_it_was_taken_for(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(test_it=STEP)
    result = project.runpytest("--amp-strict", "test_it.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*'test_it.py' is not one of all, device, *"])


def test_a_device_that_is_not_there_fails_the_test_and_says_what_is(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(test_it=STEP)
    result, reports = measure(project, "--amp-device=cuda:7")
    result.assert_outcomes(failed=1)
    assert "'cuda:7' is not there" in reports["test_step"]["error"]["message"]
    assert "--amp-device" in reports["test_step"]["error"]["message"]
