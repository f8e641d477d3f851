"""`amp_benchmark.train`: what it prints, writes, draws and returns."""

from __future__ import annotations

import pytest

from pytest_amp import AmpReport, TrainingReport
from tests.helpers.project import read

TRAINING = """
import math
import pytest, torch
import torch.nn.functional as F
from pytest_amp import Training, TrainingReport

@pytest.mark.amp
def test_training(amp_benchmark):
    def setup(arm):
        model = torch.nn.Linear(8, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        inputs, targets = torch.randn(4, 16, 8), torch.randint(4, (4, 16))
        def loss_of(index):
            with arm.autocast():
                return F.cross_entropy(model(inputs[index]), targets[index])
        def step(index):
            optimizer.zero_grad()
            loss = loss_of(index)
            loss.backward()
            optimizer.step()
            return loss
        def evaluate():
            with torch.no_grad():
                return {"loss": loss_of(0) * (1 + WORSE * arm.enabled), "accuracy": 0.75}
        return Training(step, range(4), evaluate, epochs=2)
    report = amp_benchmark.train(setup)
    assert isinstance(report, TrainingReport)
    frame = report.frame
    assert list(frame.columns) == [
        "arm", "epoch", "train/loss", "train/perplexity", "train/accuracy", "val/loss",
        "val/perplexity", "val/accuracy", "learning_rate", "gradient_norm", "epoch_duration",
        "samples_per_second", "system/memory_mb", "system/gpu_utilization",
    ]
    assert list(frame["arm"]) == ["fp32", "fp32", "amp", "amp"]
    assert list(frame["epoch"]) == [1, 2, 1, 2]
    assert frame["val/accuracy"].eq(0.75).all()
    assert frame["system/gpu_utilization"].isna().all()
    assert math.isfinite(frame["train/loss"].sum())
    assert report.best_epoch == 2
"""
QUICK = ("--amp-static", "--amp-steps=2", "--amp-json=amp.json", "-p", "no:cacheprovider")


def run(project: pytest.Pytester, *arguments: str, worse: float = 0.0) -> pytest.RunResult:
    project.makepyfile(test_it=TRAINING.replace("WORSE", str(worse)))
    return project.runpytest(*QUICK, *arguments)


def test_each_epoch_is_a_line(pytester: pytest.Pytester) -> None:
    result = run(pytester)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "*epoch 1 *train loss 1.* val loss *",
            "*epoch 2 *",
            "*accuracy 0.75 -> 0.75*; the",
            "*best",
        ]
    )


def test_it_is_written_and_read_back(pytester: pytest.Pytester) -> None:
    run(pytester)
    [written] = read(pytester)["tests"]
    assert [epoch["epoch"] for epoch in written["training"]["amp"]] == [1, 2]
    assert [gate["name"] for gate in written["gates"]][-2:] == ["val_loss_diff", "accuracy_diff"]
    report = AmpReport.from_dict(written)
    assert report.to_dict() == written
    assert TrainingReport.of(report).best_epoch == 2


def test_a_validation_loss_that_differs_is_a_failing_gate(pytester: pytest.Pytester) -> None:
    result = run(pytester, worse=0.3)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*val_loss_diff*FAILED*30%*beyond 5.0%*"])


@pytest.mark.needs("jinja2", "matplotlib")
def test_the_page_and_the_plot_have_its_figures(pytester: pytest.Pytester) -> None:
    run(pytester, "--amp-html=amp.html")
    page = (pytester.path / "amp.html").read_text("utf-8")
    for title in ("Training and validation loss", "Perplexity", "Gradient norm", "Memory"):
        assert f"<figcaption>{title}</figcaption>" in page
    report = TrainingReport.of(AmpReport.from_dict(read(pytester)["tests"][0]))
    for ending, begins in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        path = pytester.path / "plots" / f"training{ending}"
        report.plot(path)
        assert path.read_bytes().startswith(begins)
    assert "Accuracy" in (pytester.path / "plots" / "training.svg").read_text()
    with pytest.raises(ValueError, match="not supported"):
        report.plot(pytester.path / "training.doc")


def test_one_test_is_one_training(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TRAINING.replace("WORSE", "0") + "    amp_benchmark.train(setup)\n")
    result = pytester.runpytest(*QUICK)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*amp_benchmark was called twice in one test*"])


def test_a_training_that_is_none_is_told(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(amp_benchmark): amp_benchmark.train(lambda arm: lambda: 1.0)")
    result = pytester.runpytest(*QUICK)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*setup(arm) returned function, not a pytest_amp.Training*"])


STEP_WITH_A_TRAINING_S_GATE = """
import pytest
@pytest.mark.amp(max_accuracy_diff=0.01)
def test_it(amp_benchmark):
    amp_benchmark(lambda arm: lambda: 1.0)
"""


def test_thresholds_of_a_training_on_another_test_are_told(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(STEP_WITH_A_TRAINING_S_GATE)
    result = pytester.runpytest(*QUICK)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*accuracy_diff: the test is no training: give its setup to*"])
    assert pytester.runpytest(*QUICK, "--amp-strict=unmeasured").ret == 1


def test_an_option_of_a_training_s_gate_without_a_training_is_told(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(STEP_WITH_A_TRAINING_S_GATE.replace("(max_accuracy_diff=0.01)", ""))
    result = pytester.runpytest(*QUICK, "--amp-max-accuracy-diff=0.02")
    said = " ".join(result.stdout.str().split())
    assert "--amp-max-accuracy-diff=0.02 was asked of no test: none of them calls" in said
