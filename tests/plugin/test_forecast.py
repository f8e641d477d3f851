"""--amp-forecast and the attainable speedup, as a user meets them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.helpers.project import STEP, UNDECIDED

STATIC = ("--amp-static", "--amp-steps=4", "--amp-json=amp.json")


def run(project: pytest.Pytester, *options: str, body: str = STEP) -> tuple[Any, dict[str, Any]]:
    project.makepyfile(test_it=body)
    result = project.runpytest("--amp-json=amp.json", *options)
    (test,) = json.loads((project.path / "amp.json").read_text())["tests"]
    return result, test


def test_each_gpu_has_a_line_and_an_entry(project: pytest.Pytester) -> None:
    result, test = run(project, "--amp-forecast=h100,T4", *STATIC)
    result.assert_outcomes(passed=1)
    result.stdout.re_match_lines(
        [r" +forecast +H100: 0\.\d+x to .*launches and the host \d+% of the step.*", r" +T4: no .*"]
    )
    assert [each["device"] for each in test["forecasts"]] == ["H100", "T4"]
    h100, t4 = test["forecasts"]
    assert 0 < h100["low"] <= h100["high"] < 1  # a step so small is all launches
    assert h100["bound"] == "host"
    assert sum(h100["shares"].values()) == pytest.approx(1)
    assert t4 == {
        "device": "T4", "low": None, "high": None, "shares": {}, "bound": None,
        "reason": "it has no fast path for bfloat16",
    }  # fmt: skip


def test_a_bare_option_means_all_that_are_known(project: pytest.Pytester) -> None:
    _, test = run(project, "--amp-forecast", *STATIC)
    devices = [each["device"] for each in test["forecasts"]]
    assert devices == ["T4", "A10", "L4", "A100", "L40S", "H100", "H200", "B200"]


def test_without_the_option_there_is_none(project: pytest.Pytester) -> None:
    result, test = run(project, *STATIC)
    result.stdout.no_fnmatch_line("*forecast*")
    assert test["forecasts"] == []
    assert test["attainable"] is None


def test_an_unknown_gpu_is_named_with_those_that_are_known(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP)
    result = project.runpytest("--amp-forecast=V100")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*forecast: 'V100' is not one of all, T4, A10, L4, A100, *"])


def test_the_path_behind_the_option_is_no_gpu(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP)
    result = project.runpytest("--amp-forecast", "test_it.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*before a path write --amp-forecast=all*"])


def test_it_says_that_a_cpus_rules_are_not_cudas(project: pytest.Pytester) -> None:
    result, _ = run(project, "--amp-forecast=A100", *STATIC)
    result.stdout.fnmatch_lines(
        ["* note *forecasts are of operators that ran by autocast's rules*"]
    )
    result, test = run(project, "--amp-forecast=A100", "--amp-policy=cuda", *STATIC)
    assert not any("forecasts are of" in note for note in test["notes"])
    assert test["forecasts"][0]["low"] is not None


def test_a_timed_test_has_its_attainable_speedup_beside_it(project: pytest.Pytester) -> None:
    result, test = run(project, "-v", *UNDECIDED)
    result.stdout.re_match_lines(
        [r" +attainable +[\d.]+x of an attainable [\d.]+x; that would be .*"]
    )
    found = test["attainable"]
    assert found["device"] == "here"
    assert 0 < found["low"] <= found["high"]


HIDDEN = """
import pytest, torch

@torch.library.custom_op("ours::gemm", mutates_args=())
def gemm(x: torch.Tensor) -> torch.Tensor:
    return x @ x

@pytest.mark.amp
def test_step(amp_benchmark):
    def setup(arm):
        x = torch.randn(8, 8)
        return lambda: gemm(x).mean()
    amp_benchmark(setup)
"""


def test_no_forecast_is_made_of_work_that_nobody_can_count(project: pytest.Pytester) -> None:
    _, test = run(project, "--amp-forecast=A100", *STATIC, body=HIDDEN)
    assert test["forecasts"][0]["reason"] == "the record of the operators lacks ours::gemm"


@pytest.mark.needs("jinja2", "matplotlib")
def test_the_page_has_a_table_of_what_it_could_be(project: pytest.Pytester) -> None:
    run(project, "--amp-forecast=A100,T4", "--amp-html=page.html", *UNDECIDED)
    page = (project.path / "page.html").read_text()
    _, _, table = page.partition("What it could be")
    rows = table.partition("</table>")[0]
    assert "this device, attainable" in rows
    assert "A100" in rows
    assert "it has no fast path for bfloat16" in rows
