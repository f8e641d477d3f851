"""--amp-static: no timing, and everything else."""

from __future__ import annotations

import pytest

from tests.helpers.project import STEP, gate, measure


def test_nothing_is_timed_and_all_else_is_measured(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP)
    result, reports = measure(project)
    result.assert_outcomes(passed=1)
    report = reports["test_step"]
    assert report["speedup"] is None
    assert report["phases_s"]["timing"] == 0
    assert report["arms"]["fp32"]["step_times_s"] == report["arms"]["amp"]["step_times_s"] == []
    assert report["coverage"] == 1
    assert report["memory_reduction"] is not None
    assert gate(report, "loss_diff")["verdict"] == "pass"


@pytest.mark.parametrize("strict", [(), ("--amp-strict",), ("--amp-strict=unmeasured",)])
def test_a_speed_gate_is_not_gated_under_strict_too(
    project: pytest.Pytester, strict: tuple[str, ...]
) -> None:
    project.makepyfile(test_it=STEP.replace("amp\n", "amp(min_speedup=50)\n"))
    result, reports = measure(project, *strict)
    result.assert_outcomes(passed=1)
    speedup = gate(reports["test_step"], "speedup")
    assert (speedup["verdict"], speedup["value"]) == ("not_gated", None)
    assert "static" in speedup["reason"]
    assert reports["test_step"]["settings"]["min_speedup"]["value"] == 50


def test_the_other_gates_still_gate(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP)
    result, reports = measure(project, "--amp-min-memory-reduction=0.99")
    result.assert_outcomes(failed=1)
    assert gate(reports["test_step"], "memory_reduction")["verdict"] == "fail"


def test_the_rules_still_speak(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import torch

        def test_autocast_forgotten(amp_benchmark):
            def setup(arm):
                model = torch.nn.Linear(8, 4)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
                def step():
                    loss = model(torch.ones(4, 8)).square().mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    return loss
                return step
            amp_benchmark(setup)
        """
    )
    result, reports = measure(project)
    result.assert_outcomes(failed=1)
    codes = [each["code"] for each in reports["test_autocast_forgotten"]["findings"]]
    assert "AMP101" in codes
