"""The audited GradScaler, the watch on every scaler, and the replay of skipped steps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, StepLR

from pytest_amp.run.scaler import AmpScaler, Replay, StepWatch
from tests.laboratory import measure

INF = float("inf")
METHODS = [(GradScaler, "step"), (GradScaler, "update"), (AmpScaler, "step"), (LRScheduler, "step")]


def parameter(value=1.0):
    return nn.Parameter(torch.tensor([value]))


def sgd(*params, lr=0.1):
    return torch.optim.SGD(params, lr=lr)


def step(scaler, optimizers, params, loss=1.0):
    """One step whose loss is `loss` times the sum of the parameters."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    scaler.scale(loss * sum(p.sum() for p in params)).backward()
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()


# AmpScaler in the place of a GradScaler.


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


# The watch.


class OwnStep(GradScaler):
    def step(self, optimizer, *args, **kwargs):
        return super().step(optimizer, *args, **kwargs)


@pytest.mark.parametrize("kind", [GradScaler, AmpScaler, OwnStep])
def test_scalers_of_any_class_are_watched_and_each_step_counts_once(kind) -> None:
    param = parameter()
    optimizer, scaler, watch = sgd(param), kind("cpu", init_scale=4.0), StepWatch()
    with watch.installed([optimizer]):
        for loss in (1.0, INF, 1.0):
            step(scaler, [optimizer], [param], loss)
    assert watch.log.attempts == 3
    assert watch.log.skipped == ((id(optimizer), 1),)
    assert watch.log.scales == (4, 2, 2)


def test_a_disabled_scaler_leaves_no_trace_in_the_watch() -> None:
    param = parameter()
    optimizer, watch = sgd(param), StepWatch()
    with watch.installed([optimizer]):
        step(GradScaler("cpu", enabled=False), [optimizer], [param])
    assert watch.log.attempts == 0
    assert watch.replay([optimizer]) is None


def test_the_optimizer_may_be_given_by_name() -> None:
    param = parameter()
    optimizer, scaler, watch = sgd(param), GradScaler("cpu"), StepWatch()
    with watch.installed([optimizer]):
        scaler.scale(INF * param.sum()).backward()
        scaler.step(optimizer=optimizer)
        scaler.update()
    assert watch.log.skipped == ((id(optimizer), 0),)


@pytest.mark.parametrize("raises", [False, True])
def test_everything_is_unwrapped_afterwards(raises) -> None:
    before = [vars(cls)[name] for cls, name in METHODS]
    optimizer = sgd(parameter())
    watch = StepWatch(Replay(frozenset({(0, 0)}), (0,)))
    try:
        with watch.installed([optimizer]):
            assert vars(GradScaler)["step"] is not before[0]
            assert "step" in vars(optimizer)
            if raises:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert [vars(cls)[name] for cls, name in METHODS] == before
    assert "step" not in vars(optimizer)


def test_a_steps_exception_comes_through_and_the_next_one_is_recorded() -> None:
    param = parameter()
    optimizer, scaler, watch = sgd(param), GradScaler("cpu"), StepWatch()
    with watch.installed([optimizer]):
        with pytest.raises(AssertionError, match="_scale is None"):
            scaler.step(optimizer)  # no backward pass before
        step(scaler, [optimizer], [param])
    assert watch.log.attempts == 1


# The replay.


def replayed(optimizers, skips, schedules=(), steps=4, schedulers=(), values=()):
    """Run plain fp32 steps under a replay; what each parameter was after each step."""
    watch = StepWatch(Replay(frozenset(skips), tuple(schedules)))
    trajectory = []
    with watch.installed(list(optimizers)):
        for index in range(steps):
            if index:
                watch.next_step()
            for optimizer, params in optimizers.items():
                for param in params:
                    param.grad = torch.ones_like(param)
                optimizer.step()
            for scheduler in schedulers:
                scheduler.step()
            trajectory.append([p.item() for params in optimizers.values() for p in params])
    return trajectory


def test_the_same_step_is_left_out_in_the_other_arm() -> None:
    param = parameter(0.0)
    trajectory = replayed({sgd(param, lr=1.0): [param]}, {(0, 1), (0, 2)})
    assert [value for [value] in trajectory] == [-1, -1, -1, -2]


def test_of_several_optimizers_only_the_one_that_skipped_is_held_back() -> None:
    first, second = parameter(0.0), parameter(0.0)
    optimizers = {sgd(first, lr=1.0): [first], sgd(second, lr=1.0): [second]}
    assert replayed(optimizers, {(1, 0)}, steps=2) == [[-1, 0], [-2, -1]]


def test_what_was_skipped_is_found_per_optimizer_across_arms() -> None:
    first, second = parameter(), parameter()
    a, b, scaler, watch = sgd(first), sgd(second), GradScaler("cpu"), StepWatch()
    with watch.installed([a, b]):
        step(scaler, [a, b], [first, second])
        watch.next_step()
        a.zero_grad(), b.zero_grad()
        scaler.scale(first.sum() + INF * second.sum()).backward()
        scaler.step(a)
        scaler.step(b)
        scaler.update()
    other = {sgd(p := parameter(0.0), lr=1.0): [p], sgd(q := parameter(0.0), lr=1.0): [q]}
    replay = watch.replay([a, b])
    again = StepWatch(replay)
    with again.installed(list(other)):
        for _ in range(2):
            for optimizer, [param] in other.items():
                param.grad = torch.ones_like(param)
                optimizer.step()
    assert (p.item(), q.item()) == (-2, -1)


def test_a_scheduler_that_waited_for_a_skipped_step_waits_in_the_other_arm() -> None:
    param = parameter(0.0)
    optimizer = sgd(param, lr=1.0)
    scheduler = LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    # there the scheduler moved in steps 0 and 2, and not in step 1, which was skipped
    trajectory = replayed(
        {optimizer: [param]}, {(0, 1)}, schedules=(1, 0, 1), steps=3, schedulers=[scheduler]
    )
    assert [value for [value] in trajectory] == [-1, -1, -1.5]
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_a_scheduler_that_moved_on_a_skipped_step_moves_in_the_other_arm_too() -> None:
    param = parameter(0.0)
    optimizer = sgd(param, lr=1.0)
    scheduler = StepLR(optimizer, 1, gamma=0.5)
    replayed({optimizer: [param]}, {(0, 1)}, schedules=(1, 1, 1), steps=3, schedulers=[scheduler])
    assert optimizer.param_groups[0]["lr"] == 0.125


def test_a_suppressed_first_step_makes_the_scheduler_warn_of_nothing(recwarn) -> None:
    param = parameter(0.0)
    optimizer = sgd(param, lr=1.0)
    scheduler = StepLR(optimizer, 1)
    replayed({optimizer: [param]}, {(0, 0)}, schedules=(1, 1), steps=2, schedulers=[scheduler])
    assert [str(warning.message) for warning in recwarn] == []


# Both together: the story of the 7 skipped steps.


def skipping(times, schedule=False):
    """A setup whose amp arm's scale is so high that its first steps are skipped."""

    def setup(arm):
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        scheduler = StepLR(optimizer, 3, gamma=0.5)
        x, y = torch.randn(16, 8), torch.randint(4, (16,))
        scaler = GradScaler("cpu", enabled=arm.enabled, init_scale=2.0**120 * 2.0**times)

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = nn.functional.cross_entropy(model(x), y)
            scaler.scale(loss * 2.0**10).backward()
            scaler.step(optimizer)
            before = scaler.get_scale()
            scaler.update()
            if schedule and scaler.get_scale() >= before:
                scheduler.step()
            return loss

        return step

    return setup


@pytest.mark.parametrize("schedule", [False, True])
def test_healthy_skips_are_no_divergence(schedule) -> None:
    report = measure(skipping(7, schedule), steps=20, dtype="bfloat16", loss_atol=0)
    assert 3 <= report.amp.skipped_steps <= 12
    assert report.gate("loss_diff").verdict == "pass"
    assert report.loss_diff < 0.002
    first, *rest = report.fp32.losses
    assert rest[: report.amp.skipped_steps - 1] == [first] * (report.amp.skipped_steps - 1)
    assert rest[-1] < first


def test_more_skips_than_allowed_fail_with_the_number() -> None:
    report = measure(skipping(7), dtype="bfloat16", max_skipped_steps=1)
    assert report.gate("skipped_steps").verdict == "fail"
    assert report.verdict == "fail"
    lax = measure(skipping(7), dtype="bfloat16", max_skipped_steps=12, steps=20)
    assert lax.verdict == "pass"


def test_a_run_that_skips_every_step_compared_nothing() -> None:
    report = measure(skipping(7), dtype="bfloat16", steps=3)
    assert report.amp.skipped_steps == 3
    assert report.verdict == "inconclusive"
    assert "no trained parameter moved in 3 steps (the GradScaler skipped 3)" in (
        report.gate("loss_diff").reason
    )
