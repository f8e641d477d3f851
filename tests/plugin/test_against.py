"""`amp_benchmark.against`: two models under one recipe, gated, printed, written and drawn."""

from __future__ import annotations

import pytest

from pytest_amp import AmpReport, ModelsReport
from tests.helpers.clock import CLOCK
from tests.helpers.project import gate, read

MODELS = """
import pytest, torch
import torch.nn.functional as F
from tests.helpers.clock import CLOCK

def setup_of(width, seconds):
    def setup(arm):
        model = torch.nn.Sequential(
            torch.nn.Linear(64, width), torch.nn.ReLU(), torch.nn.Linear(width, 4)
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        inputs, targets = torch.randn(16, 64), torch.randint(4, (16,))
        def step():
            CLOCK.time_s += seconds
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.cross_entropy(model(inputs), targets)
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss
        return step
    return setup

@pytest.mark.amp(MARKS)
def test_models(amp_benchmark):
    report = amp_benchmark.against(setup_of(32, 0.010), setup_of(256, 0.025), name="wide")
    assert (report.candidate.model, report.reference.model) == ("this model", "wide")
    assert report.candidate.recipe == report.reference.recipe
    assert report.candidate.parameters == 64 * 32 + 32 + 32 * 4 + 4
    assert report.reference.parameters == 64 * 256 + 256 + 256 * 4 + 4
"""
QUICK = ("--amp-steps=4", "--amp-max-time=9", "--amp-json=amp.json", "-p", "no:cacheprovider")


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pytest_amp.lab.machine.device.Device.now", lambda _: CLOCK.time_s)

    def run(marks="", *arguments, source=MODELS):
        pytester.makepyfile(test_it=source.replace("MARKS", marks))
        return pytester.runpytest(*QUICK, *arguments)

    return run


def test_both_models_are_shown_with_their_figures(run, pytester: pytest.Pytester) -> None:
    result = run()
    result.assert_outcomes(passed=1)
    said = " ".join(result.stdout.str().split())
    assert "25.0 -> 10.0 ms" in said
    assert "2.50x [2.50, 2.50]" in said
    assert "model wide: 17.7 k parameters, 25.0 ms a step, " in said
    assert "model this model: 2.21 k parameters, 10.0 ms a step, " in said
    assert "perplexity" in said
    assert "they differ by chance alone" not in said
    [written] = read(pytester)["tests"]
    assert [each["name"] for each in written["gates"]] == ["speedup", "memory_reduction"]
    assert written["arms"]["amp"]["parameters"] == 2212
    assert AmpReport.from_dict(written).to_dict() == written


def test_speed_and_memory_are_gated(run, pytester: pytest.Pytester) -> None:
    run("min_speedup=2.0, min_memory_reduction=0.3").assert_outcomes(passed=1)
    result = run("min_speedup=3.0, min_memory_reduction=0.3")
    result.assert_outcomes(failed=1)
    [written] = read(pytester)["tests"]
    assert gate(written, "speedup")["verdict"] == "fail"
    assert gate(written, "memory_reduction")["verdict"] == "pass"


@pytest.mark.parametrize(
    ("marks", "recipe"),
    [('candidate="fp32"', "fp32"), ('dtype="float16"', "fp16"), ("", "bf16")],
)
def test_both_run_by_the_candidate_s_recipe(run, pytester, marks: str, recipe: str) -> None:
    run(marks, "--amp-static").assert_outcomes(passed=1)
    [written] = read(pytester)["tests"]
    assert {arm["recipe"] for arm in written["arms"].values()} == {recipe}
    assert bool(written["arms"]["fp32"]["scales"]) == (recipe == "fp16")
    assert written["speedup"] is None


@pytest.mark.needs("jinja2", "matplotlib")
def test_the_page_and_the_plot_have_bars(run, pytester: pytest.Pytester) -> None:
    run("", "--amp-html=amp.html")
    page = (pytester.path / "amp.html").read_text("utf-8")
    report = ModelsReport.of(AmpReport.from_dict(read(pytester)["tests"][0]))
    path = pytester.path / "models.svg"
    report.plot(path)
    for title in ("Parameters", "Step time", "Peak memory", "Loss", "Perplexity"):
        assert f"<figcaption>{title}</figcaption>" in page
        assert title in path.read_text()
    assert "17.7 k" in path.read_text()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("against(lambda arm: lambda: 1.0, None)", "other is a NoneType, no function"),
        ("against(lambda arm: lambda: 1.0, lambda arm: 3)", "setup(arm) returned int, not a call"),
        ("against(print, print, name='this model')", "is what the test's own model is called"),
    ],
)
def test_what_can_t_be_compared_is_told(run, call: str, message: str) -> None:
    result = run(source=f"def test_it(amp_benchmark): amp_benchmark.{call}")
    result.assert_outcomes(failed=1)
    assert message in " ".join(result.stdout.str().split())
