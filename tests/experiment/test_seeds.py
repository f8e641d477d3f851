"""Both arms from several seeds, and fp32 in float64 beside them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_amp.judge.anchor import is_beyond_rounding
from tests.helpers.lab import measure


def trained(rate=0.05, amp_rate=None, steps_of=None):
    """A small regression, whose weights and data the seed decides."""

    def setup(arm):
        model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
        optimizer = torch.optim.SGD(
            model.parameters(), lr=amp_rate if amp_rate and arm.enabled else rate
        )
        x = torch.randn(64, 8)
        y = x.sum(1, keepdim=True) + 3

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = (model(steps_of(arm, x) if steps_of else x).float() - y).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        return step

    return setup


def test_each_seed_trains_other_weights_on_other_data() -> None:
    report = measure(trained(), seeds=4, seed=11)
    assert [each.seed for each in report.seeds] == [11, 12, 13, 14]
    assert len({each.fp32["loss"] for each in report.seeds}) == 4
    gate = report.gate("loss_diff")
    assert gate.verdict == "pass"
    assert gate.low <= gate.value <= gate.high
    assert "over 4 seeds" in gate.reason


def test_a_later_seed_is_the_same_run_as_if_it_had_been_the_first() -> None:
    (_, second) = measure(trained(), seeds=2, seed=3).seeds
    alone = measure(trained(), seed=4)
    tail = alone.arms["fp32"].losses_by_key["loss"][-2:]
    assert second.fp32["loss"] == pytest.approx(sum(tail) / 2)


def test_the_last_seed_there_is_is_followed_by_the_first() -> None:
    report = measure(trained(), seeds=2, seed=2**32 - 1)
    assert [each.seed for each in report.seeds] == [2**32 - 1, 0]


def test_both_errors_against_float64_are_in_the_report() -> None:
    report = measure(trained(), seeds=2)
    (found,) = report.anchor
    assert 0 < found.reference_error < 1e-6
    assert 1e-5 < found.candidate_error < 1e-2
    assert not is_beyond_rounding(found)
    assert found.steps == len(report.arms["fp32"].losses_by_key["loss"])


def test_what_is_no_rounding_has_an_error_beyond_it() -> None:
    report = measure(trained(amp_rate=0.04), seeds=2, ignore="AMP007")
    assert is_beyond_rounding(report.anchor[0])
    assert "amp's error against float64" in report.gate("loss_diff").reason or any(
        "amp's error against float64" in note for note in report.notes
    )


def test_one_seed_that_passes_asks_for_no_float64() -> None:
    report = measure(trained())
    assert report.anchor == report.seeds == ()


def test_one_seed_that_fails_does() -> None:
    report = measure(trained(amp_rate=0.01))
    assert report.gate("loss_diff").verdict == "fail"
    assert "times fp32's, and rounding to bfloat16 explains 65.5 k times" in (
        report.gate("loss_diff").reason
    )


def test_a_step_that_does_not_run_in_float64_is_judged_without_and_said() -> None:
    def refuses(_arm, x):
        if torch.get_default_dtype() is torch.float64:
            raise ValueError("float32 only")
        return x

    report = measure(trained(amp_rate=0.01, steps_of=refuses))
    assert report.anchor == ()
    assert report.gate("loss_diff").verdict == "fail"
    assert (
        "no errors against float64: the step does not run in it (ValueError: float32 only)"
        in report.notes
    )


def test_a_step_that_is_another_in_float64_is_no_anchor() -> None:
    def scaled(_arm, x):
        return x * (2 if torch.get_default_dtype() is torch.float64 else 1)

    report = measure(trained(amp_rate=0.01, steps_of=scaled))
    assert report.anchor == ()
    assert any(
        note.startswith("no errors against float64: the first loss is") for note in report.notes
    )


def test_nothing_of_float64_is_left_behind() -> None:
    """A frozen model that all arms share, as a teacher is, has a buffer and a parameter."""
    teacher = nn.BatchNorm1d(8).eval()
    shared = nn.Parameter(torch.ones(8))
    report = measure(trained(amp_rate=0.01, steps_of=lambda _arm, x: teacher(x) * shared), seeds=2)
    assert report.anchor
    assert {each.dtype for each in (shared, *teacher.parameters(), *teacher.buffers())} == {
        torch.float32,
        torch.int64,
    }
    assert torch.get_default_dtype() is torch.float32


def test_a_step_with_nothing_random_has_one_seed_and_says_so() -> None:
    weights = torch.linspace(-1, 1, 8)

    def setup(arm):
        weight = weights.clone().requires_grad_()
        optimizer = torch.optim.SGD([weight], lr=0.1)

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = (torch.ones(4, 8) @ weight).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        return step

    report = measure(setup, seeds=3)
    assert any("every seed made the same training" in note for note in report.notes)
    assert "seeds" not in report.gate("loss_diff").reason


def test_losses_that_turn_infinite_with_one_seed_only_fail_and_name_it() -> None:
    def setup(arm):
        step = trained()(arm)
        bad = arm.enabled and float(torch.rand(())) < 0.5

        def run():
            return step() * (float("inf") if bad else 1)

        return run

    report = measure(setup, seeds=8)
    gate = report.gate("loss_diff")
    assert gate.verdict == "fail"
    assert "not finite" in gate.reason
    assert "(seed " in gate.reason


def test_a_scaler_of_one_s_own_in_both_arms_runs_in_float64_too() -> None:
    def setup(arm):
        model = nn.Linear(8, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01 if arm.enabled else 0.05)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        x = torch.randn(64, 8)

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = (model(x).float() - x.sum(1, keepdim=True) - 3).square().mean()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            return loss

        return step

    assert measure(setup).anchor


@pytest.mark.parametrize("fused", [False, True])
def test_fused_optimizers_run_in_float64_too(fused) -> None:
    def setup(arm):
        model = nn.Linear(8, 1)
        rate = 0.001 if arm.enabled else 0.1
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=fused)
        x = torch.randn(64, 8)

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = (model(x).float() - x.sum(1, keepdim=True) - 3).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        return step

    (found,) = measure(setup).anchor
    assert found.reference_error < 1e-6
