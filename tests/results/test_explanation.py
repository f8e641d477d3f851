"""What a failing test says: in its first line by how much, then the evidence and where to look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from pytest_amp import AmpRegression, Arm, Finding
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import ArmRun, Environment, Estimate, Gate, Setting
from tests.helpers.lab import measure, train

GATES = (
    Gate("speedup", 1.3, 1.12, 1.10, 1.14, "fail", "1.12x [1.10, 1.14] is below 1.30x by 14%"),
    Gate("memory_reduction", 0.25, 0.2499, None, None, "fail", "25%, below 25% by 0.01%"),
    Gate("loss_diff", 0.02, 0.001, None, None, "pass", "0.10% is at most 2.0%"),
    Gate("coverage", None, 0.5, None, None, "not_gated", "50% of the FLOPs"),
    Gate("skipped_steps", 0, 2, None, None, "fail", "skipped 2 steps, more than 0"),
)
REPORT = AmpReport(
    nodeid="test_it.py::test_step",
    verdict="fail",
    started="2026-01-01T00:00:00+00:00",
    environment=Environment(
        "NVIDIA H100", "cuda", "2.9.1", "12.8", None, None, "float16", True, {}
    ),
    settings={"loss_atol": Setting(0.005, "default")},
    gates=GATES,
    arms={
        "fp32": ArmRun((0.0112,), {"loss": (2.0, 1.0)}, 2**30, None, {"float32": 100}),
        "amp": ArmRun(
            (0.01,), {"loss": (2.0, 1.001)}, 3 * 2**28, None,
            {"float16": 50, "float32": 50}, (65536.0, 16384.0), 2,
        ),
    },
    speedup=Estimate((1.12,), 1.10, 1.14, 4),
    coverage=0.5,
    findings=(
        Finding("AMP004", "fp32-arm-not-fp32", "error", "half of it ran in bfloat16"),
        Finding("AMP401", "no-native-support", "warning", "emulated"),
        Finding("AMP101", "amp-no-op", "error", "nothing ran", suppressed="known"),
    ),
    notes=("both arms did not fit",),
)  # fmt: skip


def test_the_whole_text() -> None:
    assert REPORT.explain() == (
        "speedup 1.12x [1.10, 1.14] is below 1.30x; memory_reduction 25% is just below 25%; "
        "skipped_steps 2 is above 0; AMP004 fp32-arm-not-fp32\n"
        "on NVIDIA H100, float16 against float32, torch 2.9.1\n"
        "\n"
        "  speedup           FAILED     1.12x [1.10, 1.14] is below 1.30x by 14%\n"
        "  memory_reduction  FAILED     25%, below 25% by 0.01%\n"
        "  loss_diff         ok         0.10% is at most 2.0%\n"
        "  skipped_steps     FAILED     skipped 2 steps, more than 0\n"
        "\n"
        "  fp32 -> amp\n"
        "    step time    11.2 -> 10.0 ms\n"
        "    peak memory  1.00 GiB -> 768 MiB\n"
        "    last loss    1 -> 1.001\n"
        "\n"
        "  error AMP004 fp32-arm-not-fp32\n"
        "    half of it ran in bfloat16\n"
        "  warning AMP401 no-native-support, suspected cause of speedup\n"
        "    emulated\n"
        "  note: both arms did not fit\n"
        "  `pytest-amp explain AMP004` says more\n"
        "\n"
        "  look at coverage: 50% of the FLOPs ran in float16, and what stays in float32 gains\n"
        "    nothing\n"
        "  look at what is not an activation: parameters, gradients and optimizer state stay\n"
        "    float32 under autocast, and so do the outputs of the operators that it keeps there\n"
        "  look at the loss scale, 2^16 after the first update and 2^14 after the last"
    )


def test_the_text_is_the_exception_s_too() -> None:
    with pytest.raises(AmpRegression) as caught:
        REPORT.check()
    assert str(caught.value) == REPORT.explain()
    assert caught.value.report is REPORT


def hints(report: AmpReport) -> list[str]:
    return [line for line in report.explain().splitlines() if line.startswith("  look at")]


def curves(fp32: dict[str, tuple[float, ...]], amp: dict[str, tuple[float, ...]]) -> AmpReport:
    gate = Gate("loss_diff", 0.02, 0.5, None, None, "fail", "50% is beyond 2.0%")
    arms = {"fp32": ArmRun((), fp32), "amp": ArmRun((), amp)}
    return replace(REPORT, gates=(gate,), arms=arms)


def test_a_loss_s_hint_is_the_step_at_which_it_parts() -> None:
    report = curves({"loss": (2.0, 1.0, 0.9)}, {"loss": (2.01, 1.0, 1.9)})
    assert hints(report) == ["  look at step 3 of 3, where the two 'loss' curves part: 0.9, 1.9"]


def test_what_loss_atol_accepts_is_no_parting() -> None:
    report = curves({"loss": (0.001, 1.0)}, {"loss": (0.004, 2.0)})
    assert hints(report) == ["  look at step 2 of 2, where the two 'loss' curves part: 1, 2"]


def test_causes_of_a_failing_gate_come_first_by_how_much_they_explain() -> None:
    report = replace(
        REPORT,
        findings=(
            Finding("AMP005", "baseline-flags", "warning", "flags"),
            Finding("AMP403", "cast-bound", "warning", "casts", evidence={"share": 0.4}),
            Finding("AMP402", "fp32-fallback", "warning", "half", evidence={"share": 0.5}),
            Finding("AMP501", "memory-not-reduced", "warning", "casts", confirmed=True),
            Finding("AMP304", "gradient-mismatch", "warning", "no gate of its own failed"),
        ),
    )
    lines = [line.strip() for line in report.explain().splitlines() if "  warning AMP" in line]
    assert lines == [
        "warning AMP501 memory-not-reduced, confirmed cause of memory_reduction",
        "warning AMP402 fp32-fallback, suspected cause of speedup and memory_reduction",
        "warning AMP403 cast-bound, suspected cause of speedup and memory_reduction",
        "warning AMP005 baseline-flags",
        "warning AMP304 gradient-mismatch",
    ]
    assert "`pytest-amp explain AMP501` says more" in report.explain()


@pytest.mark.parametrize("cause", ["AMP301", "AMP211"])
def test_a_consequence_is_told_after_its_cause(cause) -> None:
    failed = Gate("skipped_steps", 2, 20, None, None, "fail", "too many")
    stuck = Finding("AMP207", "scale-stuck", "error", "skips")
    found = Finding(cause, "cause", "error", "inf")
    report = replace(REPORT, gates=(failed,), findings=(stuck, found))
    lines = [line.strip() for line in report.explain().splitlines() if "  error AMP" in line]
    assert lines[0].startswith(f"error {cause} cause")
    assert lines[1] == f"error AMP207 scale-stuck, a consequence of {cause}"
    assert f"{cause} cause; AMP207" in report.explain()
    alone = replace(report, findings=(stuck,)).explain()
    assert "error AMP207 scale-stuck, suspected cause of skipped_steps" in alone


def test_a_long_message_is_wrapped_and_no_path_is_broken() -> None:
    path = "decoder.layers." + "0." * 60 + "attention"
    message = " ".join(["the share of gradients that are zero", path] + ["goes on"] * 30)
    finding = Finding("AMP302", "gradient-underflow", "warning", message, module="decoder")
    lines = replace(REPORT, findings=(finding,), notes=(message,)).explain().splitlines()
    assert "  warning AMP302 gradient-underflow in decoder" in lines
    assert f"    {path}" in lines
    wrapped = [line for line in lines if "goes on" in line]
    assert len(wrapped) > 4
    assert max(map(len, wrapped)) <= 88


def test_of_several_losses_the_first_to_part_is_named() -> None:
    report = curves({"d": (1.0, 1.0), "g": (1.0, 1.0)}, {"d": (1.0, 2.0), "g": (3.0, 1.0)})
    assert hints(report) == ["  look at step 1 of 2, where the two 'g' curves part: 1, 3"]


def test_a_loss_that_is_not_finite_parts() -> None:
    report = curves({"loss": (1.0, 1.0)}, {"loss": (1.0, float("nan"))})
    assert hints(report) == ["  look at step 2 of 2, where the two 'loss' curves part: 1, nan"]


def test_the_figure_that_is_missed_is_in_a_real_test_s_first_line() -> None:
    def setup(arm: Arm) -> Callable[[], torch.Tensor]:
        layer = torch.nn.Linear(8, 4)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
        x = torch.ones(4, 8)
        return train(arm, optimizer, lambda: layer(x).float().square().mean())

    report = measure(setup, min_memory_reduction=0.99, min_coverage=0.5)
    first, *rest = report.explain().splitlines()
    assert first.startswith("memory_reduction ")
    assert first.endswith(" is below 99%")
    assert any(line.startswith("  coverage          ok ") for line in rest)
