"""Recipes as settings: in a marker, on the command line, in the ini file; and where they show."""

from __future__ import annotations

import jsonschema
import pytest

from pytest_amp.render.json import schema
from tests.helpers.project import CONFTEST, QUICK, STEP, measure, read


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(CONFTEST)
    return pytester


def recipes(report) -> tuple[str, str]:
    return report["arms"]["fp32"]["recipe"], report["arms"]["amp"]["recipe"]


@pytest.mark.parametrize(
    ("marker", "arguments", "ini", "expected"),
    [
        ("", [], "", ("fp32", "bf16")),
        ("", ["--amp-dtype=float16"], "", ("fp32", "fp16")),
        ("", ["--amp-candidate=fp16"], "", ("fp32", "fp16")),
        ("", ["--amp-reference=bf16", "--amp-candidate=bf16-true"], "", ("bf16", "bf16-true")),
        ("", [], "amp_reference = bf16\namp_candidate = fp16", ("bf16", "fp16")),
        ("", ["--amp-candidate=fp16"], "amp_candidate = bf16-true", ("fp32", "fp16")),
        ('(reference="bf16", candidate="bf16-true")', ["--amp-candidate=fp16"], "",
         ("bf16", "bf16-true")),
        ('(candidate="auto")', ["--amp-dtype=float16"], "", ("fp32", "fp16")),
        ('(candidate="bf16")', ["--amp-dtype=float16"], "", ("fp32", "bf16")),
        ('(dtype="float16")', ["--amp-candidate=bf16-true"], "", ("fp32", "fp16")),
        ('(dtype="bfloat16", candidate="bf16-true")', [], "", ("fp32", "bf16-true")),
        ('(candidate="fp16")', ["--amp-override", "candidate=bf16"], "", ("fp32", "bf16")),
    ],
)  # fmt: skip
def test_the_strongest_level_names_the_recipe(project, marker, arguments, ini, expected) -> None:
    project.makeini(f"[pytest]\n{ini}")
    project.makepyfile(test_it=STEP.replace("mark.amp", f"mark.amp{marker}"))
    result, reports = measure(project, *arguments)
    result.assert_outcomes(passed=1)
    assert recipes(reports["test_step"]) == expected
    jsonschema.validate(read(project), schema())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--amp-candidate=bf17"], "--amp-candidate: 'bf17' is not a recipe (did you mean bf16?)*"),
        (["--amp-reference=auto"], "--amp-reference: 'auto' is not a recipe; there are fp32, *"),
        (["--amp-dtype=float16", "--amp-candidate=bf16"],
         "--amp-dtype and --amp-candidate: dtype=float16 is short for candidate=fp16, and *"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_a_usage_error(project, arguments, said) -> None:
    project.makepyfile(test_it=STEP)
    result = project.runpytest(*QUICK, *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {said}"])


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ('(candidate="bf17")', "*@pytest.mark.amp: candidate: 'bf17' is not a recipe*"),
        ('(dtype="float16", candidate="bf16")',
         "*dtype=float16 is short for candidate=fp16, and candidate=bf16 is given too: leave*"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_in_a_marker_is_a_collection_error(project, marker, said) -> None:
    project.makepyfile(test_it=STEP.replace("mark.amp", f"mark.amp{marker}"))
    result = project.runpytest(*QUICK)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([said])


def test_a_body_that_is_the_step_has_its_models_prepared(project) -> None:
    project.makepyfile(
        test_it="""
import pytest, torch
import torch.nn.functional as F

SEEN = set()

@pytest.fixture
def criterion():
    return torch.nn.MSELoss()

@pytest.mark.amp(reference="bf16", candidate="bf16-true", max_loss_diff=0.5)
def test_step(model, optimizer, batch, criterion):
    out = model(batch[0])
    SEEN.add((model.weight.dtype, torch.is_autocast_enabled("cpu"), out.dtype))
    assert next(iter(optimizer.param_groups[0]["params"])) is model.weight
    assert not criterion._forward_pre_hooks
    return criterion(out.float(), torch.zeros(4, 4))

def test_seen(model):
    half = torch.bfloat16
    assert SEEN == {(torch.float32, True, half), (half, False, half)}
    assert model.weight.dtype is torch.float32
"""
    )
    result, reports = measure(project)
    result.assert_outcomes(passed=2)
    assert recipes(reports["test_step"]) == ("bf16", "bf16-true")


@pytest.mark.needs("jinja2", "matplotlib")
def test_the_terminal_and_the_page_show_the_names(project) -> None:
    project.makepyfile(
        test_it=STEP
        + """
@pytest.mark.amp(reference="bf16", candidate="bf16-true", min_memory_reduction=0.9)
def test_true(model, optimizer, batch):
    return F.cross_entropy(model(batch[0]).float(), batch[1])
"""
    )
    result, _ = measure(project, "-v", "--amp-html=amp.html")
    lines = [line.split() for line in result.outlines]
    assert any(line[:3] == ["recipes", "step", "time"] for line in lines)
    assert any(line[:3] == ["fp32", "->", "bf16"] for line in lines)
    assert any(line[:3] == ["bf16", "->", "bf16-true"] for line in lines)
    result.stdout.fnmatch_lines(["on *, bf16-true against bf16, torch *", "*  bf16 -> bf16-true"])
    page = (project.path / "amp.html").read_text()
    assert ", bf16-true against bf16, torch " in page
    assert ", bfloat16 against float32, torch " in page
    assert '<th scope="col">bf16-true arm</th>' in page


def test_without_a_choice_there_is_no_column_for_it(project) -> None:
    project.makepyfile(test_it=STEP)
    result, _ = measure(project, "-v")
    result.stdout.no_fnmatch_line("*recipes*")
    result.stdout.no_fnmatch_line("* bf16*")
