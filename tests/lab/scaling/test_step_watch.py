"""The watch on every scaler, the replay of skipped steps, and the check of timed blocks."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.amp import GradScaler
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, SequentialLR, StepLR

from pytest_amp.lab.phases import parity
from pytest_amp.lab.scaling.scaler import AmpScaler
from pytest_amp.lab.scaling.skip_check import SkipCheck
from pytest_amp.lab.scaling.step_watch import Replay, StepWatch
from pytest_amp.lab.watch.fingerprint import digest
from tests.helpers.lab import codes, measure, train, workbench
from tests.helpers.steps import INF, parameter, sgd, step

METHODS = [(GradScaler, "step"), (GradScaler, "update"), (AmpScaler, "step"), (LRScheduler, "step")]


# The watch.


class OwnStep(GradScaler):
    def step(self, optimizer, *args, **kwargs):
        return super().step(optimizer, *args, **kwargs)


@pytest.mark.parametrize("kind", [GradScaler, AmpScaler, OwnStep])
def test_scalers_of_any_class_are_watched_and_each_step_counts_once(kind) -> None:
    param = parameter()
    optimizer, scaler, watch = sgd(param), kind("cpu", init_scale=4.0), StepWatch()
    with watch.installed():
        for loss in (1.0, INF, 1.0):
            step(scaler, [optimizer], [param], loss)
    assert watch.log.attempts == 3
    assert watch.log.skipped() == (False, True, False)
    assert watch.log.scales == (4, 2, 2)


def test_a_disabled_scaler_leaves_no_trace_in_the_watch() -> None:
    param = parameter()
    optimizer, watch = sgd(param), StepWatch()
    with watch.installed():
        step(GradScaler("cpu", enabled=False), [optimizer], [param])
    assert watch.log.attempts == 0
    assert watch.replay() is None


def test_the_optimizer_may_be_given_by_name() -> None:
    param = parameter()
    optimizer, scaler, watch = sgd(param), GradScaler("cpu"), StepWatch()
    with watch.installed():
        scaler.scale(INF * param.sum()).backward()
        scaler.step(optimizer=optimizer)
        scaler.update()
    assert watch.log.skipped() == (True,)


@pytest.mark.parametrize("raises", [False, True])
def test_everything_is_unwrapped_afterwards(raises) -> None:
    before = [vars(cls)[name] for cls, name in METHODS]
    optimizer = sgd(parameter())
    watch = StepWatch(Replay(frozenset({(0, 0)}), (0,)))
    try:
        with watch.installed():
            assert vars(GradScaler)["step"] is not before[0]
            optimizer.param_groups[0]["params"][0].grad = torch.ones(1)
            optimizer.step()
            if raises:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert [vars(cls)[name] for cls, name in METHODS] == before
    [param] = optimizer.param_groups[0]["params"]
    assert (param.item(), param.grad.item()) == (1, 1)  # the step was withheld, its gradient not
    optimizer.step()
    assert param.item() == pytest.approx(0.9)


def test_a_steps_exception_comes_through_and_the_next_one_is_recorded() -> None:
    param = parameter()
    optimizer, scaler, watch = sgd(param), GradScaler("cpu"), StepWatch()
    with watch.installed():
        with pytest.raises(AssertionError, match="_scale is None"):
            scaler.step(optimizer)  # no backward pass before
        step(scaler, [optimizer], [param])
    assert watch.log.attempts == 1


# The replay.


def replayed(optimizers, skips, schedules=(), steps=4, schedulers=(), values=()):
    """Run plain fp32 steps under a replay; what each parameter was after each step."""
    watch = StepWatch(Replay(frozenset(skips), tuple(schedules)))
    trajectory = []
    with watch.installed():
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
    with watch.installed():
        step(scaler, [a, b], [first, second])
        watch.next_step()
        a.zero_grad(), b.zero_grad()
        scaler.scale(first.sum() + INF * second.sum()).backward()
        scaler.step(a)
        scaler.step(b)
        scaler.update()
    other = {sgd(p := parameter(0.0), lr=1.0): [p], sgd(q := parameter(0.0), lr=1.0): [q]}
    replay = watch.replay()
    again = StepWatch(replay)
    with again.installed():
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


@pytest.mark.parametrize("made", [LambdaLR, SequentialLR])
def test_a_scheduler_that_is_made_on_a_withheld_step_takes_its_place(made) -> None:
    """Where that step was skipped no scheduler moved, and this one was made too."""
    param = parameter(0.0)
    optimizer = sgd(param, lr=1.0)
    with StepWatch(Replay(frozenset({(0, 0)}), (0, 1))).installed():
        param.grad = torch.ones(1)
        optimizer.step()
        scheduler = LambdaLR(optimizer, lambda epoch: 0.5 ** (epoch + 1))
        if made is SequentialLR:
            scheduler = SequentialLR(optimizer, [scheduler, StepLR(optimizer, 1)], milestones=[9])
        assert optimizer.param_groups[0]["lr"] == 0.5
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5  # the move of its own was withheld


def test_a_suppressed_first_step_makes_the_scheduler_warn_of_nothing(recwarn) -> None:
    param = parameter(0.0)
    optimizer = sgd(param, lr=1.0)
    scheduler = StepLR(optimizer, 1)
    replayed({optimizer: [param]}, {(0, 0)}, schedules=(1, 1), steps=2, schedulers=[scheduler])
    assert [str(warning.message) for warning in recwarn] == []


def withholding() -> StepWatch:
    """Of the first step of the first optimizer."""
    return StepWatch(Replay(frozenset({(0, 0)}), ()))


def test_an_optimizer_that_raises_in_a_withheld_step_gets_its_parameters_back() -> None:
    class Careful(torch.optim.SGD):
        def step(self):
            if not self.param_groups[0]["params"]:
                raise ZeroDivisionError
            super().step()

    param = parameter()
    param.grad = torch.ones(1)
    optimizer = Careful([param], lr=0.1)
    with pytest.raises(ZeroDivisionError), withholding().installed():
        optimizer.step()
    assert optimizer.param_groups[0]["params"] == [param]
    assert param.grad.item() == 1


class Plain(torch.optim.Optimizer):
    """One that does not look whether there is a gradient."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.5})
        self.steps = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.steps += 1
        for group in self.param_groups:
            for each in group["params"]:
                each.sub_(each.grad, alpha=group["lr"])


class Normed(Plain):
    """One that can't do without any."""

    @torch.no_grad()
    def step(self, closure=None):
        torch.stack([each.grad.norm() for each in self.param_groups[0]["params"]]).norm()
        super().step()


@pytest.mark.parametrize("kind", [Plain, Normed])
def test_a_users_optimizer_that_does_not_look_for_none_is_withheld_in_a_scalers_step(kind) -> None:
    param = parameter()
    start, param.grad = param.item(), torch.ones(1)
    optimizer, scaler = kind([param]), GradScaler("cpu", enabled=False)
    with withholding().installed():
        scaler.step(optimizer)
        assert (param.item(), optimizer.steps) == (start, 0)
        scaler.step(optimizer)
    assert param.item() == start - 0.5
    assert param.grad.item() == 1


def test_its_own_step_finds_no_parameters() -> None:
    param = parameter()
    start, param.grad = param.item(), torch.ones(1)
    optimizer = Plain([param])
    with withholding().installed():
        optimizer.step()
        assert param.item() == start
        optimizer.step()
    assert param.item() == start - 0.5


# Which optimizers there are, and what they train.


def test_optimizers_are_numbered_by_their_first_step_whether_or_not_a_scaler_skips_it() -> None:
    first, second = parameter(), parameter()
    a, b = sgd(first), sgd(second)
    scaler, amp, fp32 = GradScaler("cpu"), StepWatch(), StepWatch()
    with amp.installed():
        scaler.scale(INF * second.sum() + INF * first.sum()).backward()
        scaler.step(b)
        scaler.step(a)
        scaler.update()
    with fp32.installed():
        b.step()
        a.step()
    assert amp.trained.optimizers == fp32.trained.optimizers == [b, a]
    assert amp.trained.parameters == [second, first]
    assert amp.trained.start == fp32.trained.start


def test_parameters_count_once_as_they_were_before_any_optimizer_moved_them() -> None:
    shared, own = parameter(), parameter()
    a, b, watch = sgd(shared), sgd(shared, own), StepWatch()
    before = digest([shared, own])
    with watch.installed():
        shared.grad = own.grad = torch.ones(1)
        a.step()
        b.step()
    assert watch.trained.parameters == [shared, own]
    assert watch.trained.start == before
    assert watch.trained.moved


def test_nothing_trained_has_no_start_and_did_not_move() -> None:
    watch = StepWatch()
    with watch.installed():
        pass
    assert watch.trained.start is None
    assert watch.trained.moved is None


def copied_in_setup(arm):
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = copy.deepcopy((model, optimizer))
    x = torch.randn(8, 4)
    return train(arm, optimizer, lambda: model(x).square().mean())


def made_in_the_first_step(arm):
    model, x = nn.Linear(4, 4), torch.randn(8, 4)
    steps = []

    def step():
        if not steps:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            steps.append(train(arm, optimizer, lambda: model(x).square().mean()))
        return steps[0]()

    return step


@pytest.mark.parametrize("setup", [copied_in_setup, made_in_the_first_step])
def test_what_optimizers_train_is_found_however_they_were_made(setup) -> None:
    report = measure(setup, max_loss_diff=0.02)
    assert report.verdict == "pass"
    assert codes(report) == []
    assert 0 < report.noise_floor < 0.1


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


# Timed blocks, from the scaler's own state alone.


def blocks(losses, kind=GradScaler, **options):
    """Whether each block of such losses has a step that a scaler of these options skips."""
    param = parameter()
    optimizer, scaler = sgd(param, lr=0.0), kind("cpu", **options)
    found = []
    with SkipCheck().watching() as check:
        for block in losses:
            before = check.look()
            for loss in block:
                step(scaler, [optimizer], [param], loss)
            found.append(check.skipped_since(before))
    return found


GOOD, SKIP = 1.0, INF


@pytest.mark.parametrize("block", [[SKIP], [GOOD, SKIP], [SKIP, GOOD, GOOD], [SKIP] * 5])
def test_a_block_with_a_skip_is_told_from_those_without(block) -> None:
    assert blocks([[GOOD], block, [GOOD], [GOOD, GOOD]]) == [False, True, False, False]


def test_a_scaler_that_is_new_is_judged_from_its_first_step() -> None:
    assert blocks([[SKIP], [GOOD]]) == [True, False]
    assert blocks([[GOOD], [GOOD]]) == [False, False]


def test_a_scale_that_grows_is_no_skip_and_one_that_shrank_and_grew_again_is() -> None:
    assert blocks([[GOOD] * 7] * 3, growth_interval=3) == [False] * 3
    # backed off once and grown once, so that the scale is what it was
    assert blocks([[GOOD], [SKIP, GOOD, GOOD]], growth_interval=2) == [False, True]


@given(
    st.lists(st.sampled_from([GOOD, SKIP]), max_size=12),
    st.integers(0, 5),
    st.integers(1, 5),
    st.sampled_from([(2.0, 0.5), (1.5, 0.9), (1.0001, 0.5), (4.0, 0.5)]),
)
@settings(max_examples=200, deadline=None)
def test_every_skip_is_found_and_no_other(losses, lead, interval, factors) -> None:
    growth, backoff = factors
    options = {"growth_interval": interval, "growth_factor": growth, "backoff_factor": backoff}
    assert blocks([[GOOD] * lead, losses], **options) == [False, SKIP in losses]


def test_a_scale_that_ran_out_skips_every_step() -> None:
    assert blocks([[SKIP] * 200, [SKIP] * 3]) == [True, True]
    assert blocks([[SKIP] * 200, [SKIP] * 4], growth_interval=2) == [True, True]


def test_a_scale_at_its_ceiling_no_longer_grows() -> None:
    options = {"init_scale": 2.0**127, "growth_interval": 2}
    assert blocks([[2.0**-127] * 4, [2.0**-127] * 4], **options) == [False, False]


class InPython(GradScaler):
    """Its update is a subclass's own, as that of sharded scalers is on a CPU."""

    def update(self, new_scale=None):
        states = self._per_optimizer_states.values()
        found = sum(
            inf.item() for state in states for inf in state["found_inf_per_device"].values()
        )
        if found:
            self._scale *= self._backoff_factor
            self._growth_tracker.fill_(0)
        elif int(self._growth_tracker) + 1 == self._growth_interval:
            self._scale *= self._growth_factor
            self._growth_tracker.fill_(0)
        else:
            self._growth_tracker = self._growth_tracker + 1
        self._per_optimizer_states.clear()


@pytest.mark.parametrize("interval", [2000, 3])
def test_a_scaler_whose_updates_nobody_counts_is_judged_by_where_it_may_have_come_from(
    interval,
) -> None:
    losses = [[GOOD], [GOOD] * 7, [SKIP], [GOOD, SKIP, GOOD], [GOOD] * 2]
    found = blocks(losses, kind=InPython, growth_interval=interval)
    assert found == [False, False, True, True, False]


@pytest.mark.parametrize("overflow", [False, True])
def test_updates_are_counted_where_they_come_every_few_steps(overflow) -> None:
    param, check = parameter(), SkipCheck()
    optimizer, scaler = sgd(param, lr=0.0), GradScaler("cpu", growth_interval=3)

    def micro(index):
        scaler.scale(param.sum() * (INF if overflow and index == 6 else 1)).backward()
        if index % 4 == 3:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

    with check.watching():
        micro(0)  # in which it is used, and not updated
    before = check.look()
    for index in range(1, 40):
        micro(index)
    assert check.skipped_since(before) is overflow


def test_a_scale_that_grows_with_every_step_is_beyond_no_float() -> None:
    options = {"init_scale": 1e-30, "growth_interval": 1}
    assert blocks([[1e-38], [1e-38] * 1200], **options) == [False, False]


def test_a_disabled_scaler_skips_nothing() -> None:
    assert blocks([[GOOD], [INF]], enabled=False) == [False, False]


def test_scalers_that_are_gone_are_forgotten() -> None:
    with SkipCheck().watching() as check:
        step(scaler := GradScaler("cpu"), [sgd(p := parameter())], [p])
        assert len(check.look()) == 1
        del scaler
        assert check.look() == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("passes", [1, 3])
def test_backward_passes_between_two_steps_are_counted(passes, dtype) -> None:
    def setup(arm):
        weight = torch.ones(4, requires_grad=True)
        optimizer = torch.optim.SGD([weight], lr=0.1)

        def step():
            optimizer.zero_grad()
            torch.autograd.grad(weight.sum(), weight)  # adds to nothing
            for _ in range(passes):
                arm.scaler.scale(weight.sum()).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return weight.detach().sum()

        return step

    seen, _ = parity.run(workbench(setup, dtype), "amp", 4)
    assert seen.scaler.most_passes == passes
