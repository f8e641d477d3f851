"""The audited GradScaler, in the place of torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from pytest_amp.lab.scaling.scaler import AmpScaler, FixtureScaler
from pytest_amp.lab.watch.events import subscribed
from tests.helpers.steps import INF, parameter, sgd, step


def test_it_trains_bit_for_bit_like_torchs_own() -> None:
    def train(scaler):
        param = parameter()
        optimizer = sgd(param)
        for loss in (1.0, INF, 2.0, 3.0):
            step(scaler, [optimizer], [param], loss)
        return param.item(), scaler.get_scale(), scaler.state_dict()

    mine, torchs = AmpScaler("cpu", growth_interval=2), GradScaler("cpu", growth_interval=2)
    assert isinstance(mine, GradScaler)
    assert train(mine) == train(torchs)


def test_skipped_steps_and_the_scales_trajectory_are_recorded() -> None:
    param = parameter()
    optimizer, scaler = sgd(param), AmpScaler("cpu", init_scale=1024.0)
    assert (scaler.skipped_steps, scaler.scales) == (0, ())
    for loss in (1.0, INF, 1.0, float("nan")):
        step(scaler, [optimizer], [param], loss)
    assert scaler.skipped_steps == 2
    assert scaler.scales == (1024, 512, 512, 256)


def test_overflow_next_makes_one_step_overflow_and_no_other() -> None:
    param = parameter()
    optimizer, scaler = sgd(param), AmpScaler("cpu")
    scaler.overflow_next()
    step(scaler, [optimizer], [param])
    assert param.item() == 1.0
    assert scaler.skipped_steps == 1
    step(scaler, [optimizer], [param])
    assert param.item() == pytest.approx(0.9)
    assert scaler.skipped_steps == 1


@pytest.mark.parametrize("container", [list, tuple])
def test_overflow_next_on_several_losses_makes_the_first_infinite(container) -> None:
    scaler = AmpScaler("cpu", init_scale=2.0)
    scaler.overflow_next()
    scaled = scaler.scale(container([torch.tensor(1.0), torch.tensor(1.0)]))
    assert type(scaled) is container
    assert [each.item() for each in scaled] == [INF, 2.0]


def test_a_disabled_one_passes_everything_through_and_refuses_to_overflow() -> None:
    param = parameter()
    optimizer, scaler = sgd(param), AmpScaler("cpu", enabled=False)
    step(scaler, [optimizer], [param])
    assert param.item() == pytest.approx(0.9)
    assert (scaler.skipped_steps, scaler.scales) == (0, ())
    with pytest.raises(RuntimeError, match="disabled"):
        scaler.overflow_next()


def test_its_state_moves_to_a_plain_scaler_and_back() -> None:
    param = parameter()
    scaler = AmpScaler("cpu", init_scale=8.0)
    step(scaler, [sgd(param)], [param], INF)
    plain = GradScaler("cpu")
    plain.load_state_dict(scaler.state_dict())
    assert plain.state_dict() == scaler.state_dict()
    again = AmpScaler("cpu")
    again.load_state_dict(plain.state_dict())
    step(again, [sgd(param)], [param])
    assert again.scales == (4.0,)


def test_it_can_be_copied_between_steps_as_torchs_own_can() -> None:
    param = parameter()
    scaler = AmpScaler("cpu", init_scale=8.0)
    step(scaler, [sgd(param)], [param], INF)
    assert copy.deepcopy(scaler).scales == scaler.scales


def test_unscale_before_the_step_is_recorded_alike() -> None:
    param = parameter()
    optimizer, scaler = sgd(param), AmpScaler("cpu")
    for loss in (INF, 1.0):
        optimizer.zero_grad()
        scaler.scale(loss * param.sum()).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_([param], 1.0)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.skipped_steps == 1


def test_a_fixtures_scaler_is_the_arms_in_all_that_a_step_can_ask_and_itself_afterwards() -> None:
    param = parameter()
    optimizer, arms = sgd(param), AmpScaler("cpu", init_scale=1024.0, growth_interval=7)
    fixture = FixtureScaler("cpu", init_scale=8.0)
    with fixture.standing_for(arms):
        assert isinstance(fixture, AmpScaler)
        step(fixture, [optimizer], [param], INF)
        assert (fixture.get_scale(), fixture.skipped_steps, fixture.scales) == (512, 1, (512,))
        assert fixture.state_dict() == arms.state_dict()
        fixture.set_growth_interval(9)
        fixture.mine = "kept on the arm's"
        fixture.overflow_next()
        step(arms, [optimizer], [param])
    assert (arms.skipped_steps, arms.get_growth_interval(), arms.mine) == (
        2,
        9,
        "kept on the arm's",
    )
    assert (fixture.get_scale(), fixture.skipped_steps, fixture.scales) == (8, 0, ())
    assert not hasattr(fixture, "mine")


def test_a_watched_step_sees_one_scaler_whichever_of_the_two_is_called() -> None:
    seen: list[object] = []

    def around(original, scaler, *args):
        seen.append(scaler)
        return original(scaler, *args)

    arms, fixture = AmpScaler("cpu"), FixtureScaler("cpu")
    with subscribed(scale=around), fixture.standing_for(arms):
        fixture.scale(torch.tensor(1.0))
        arms.scale(torch.tensor(1.0))
    assert [each is arms for each in seen] == [True, True]


def test_a_fixtures_scaler_stands_for_torchs_own_too_and_for_itself_after_an_error() -> None:
    fixture = FixtureScaler("cpu", init_scale=8.0)
    outer, inner = GradScaler("cpu", init_scale=4.0), GradScaler("cpu", init_scale=2.0)
    with fixture.standing_for(outer):
        with pytest.raises(ZeroDivisionError), fixture.standing_for(inner):
            1 / (fixture.get_scale() - 2.0)
        assert fixture.get_scale() == 4.0
    assert fixture.get_scale() == 8.0
