"""The two drills: what they make happen, what they see, and that they leave no trace."""

from __future__ import annotations

import inspect
import itertools
import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo import eval_frame
from torch.amp import GradScaler
from torch.amp.autocast_mode import autocast
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
    StepLR,
)
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.utils.checkpoint import checkpoint

from pytest_amp.lab.phases.drill import NothingShown, attempted
from pytest_amp.lab.phases.overflow_drill import overflow
from pytest_amp.lab.phases.scale_drill import HIGH, LOW, two_scales
from pytest_amp.lab.scaling.scaler import AmpScaler
from tests.helpers.lab import codes, measure, workbench

HALF = torch.float16
WATCHED = [
    *((GradScaler, name) for name in ("__init__", "scale", "step", "update", "load_state_dict")),
    *((AmpScaler, name) for name in ("__init__", "scale", "step", "update")),
    (LRScheduler, "__init__"),
    (LRScheduler, "step"),
    (autocast, "__enter__"),
    (torch.nn.Module, "__call__"),
]


def patched_things():
    """Everything that a drill lays its hands on, as it is now."""
    return (
        [vars(cls)[name] for cls, name in WATCHED],
        torch.autograd._engine_run_backward,
        len(_global_optimizer_pre_hooks),
        len(_global_optimizer_post_hooks),
        torch.get_autocast_dtype("cpu"),
        eval_frame._stance.stance,
    )


def mlp():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def training(
    edit=lambda *_: None,
    optimizer_of=lambda model: torch.optim.SGD(model.parameters(), lr=0.05),
    scaler_of=lambda arm: arm.scaler,
    move=lambda *_: None,
    every=1,
):
    """A setup; `edit(scaler, model, loss)` comes before the step, which `every`-th call takes."""

    def setup(arm):
        model, count = mlp(), itertools.count(1)
        optimizer, scaler = optimizer_of(model), scaler_of(arm)
        scheduler = StepLR(optimizer, 2)
        x, y = torch.randn(16, 8), torch.randint(4, (16,))

        def step():
            with arm.autocast():
                loss = F.cross_entropy(model(x).float(), y)
            scaler.scale(loss / every).backward()
            edit(scaler, model, loss)
            if next(count) % every == 0:
                scaler.step(optimizer)
                before = scaler.get_scale()
                scaler.update()
                move(scheduler, scaler.get_scale() < before)
                optimizer.zero_grad()
            return loss

        return step

    return setup


def drill(setup, steps=8):
    """The overflow drill's only overflow."""
    seen = overflow(workbench(setup, HALF), steps)
    assert seen is not None
    [only] = seen.overflows
    return only


# The overflow drill.

OPTIMIZERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, foreach=False),
    "foreach": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, foreach=True),
    "fused": lambda model: torch.optim.AdamW(model.parameters(), fused=True),
    "adagrad": lambda model: torch.optim.Adagrad(model.parameters(), fused=True),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_overflow_is_skipped_by_every_kind_of_optimizer_and_the_scale_backs_off(kind) -> None:
    seen = drill(training(optimizer_of=OPTIMIZERS[kind]))
    assert (seen.reached, seen.changed, seen.skipped) == ((0,), {}, (0,))
    assert seen.scale == (2.0**16, 2.0**15)
    assert seen.backward
    assert seen.next_loss_finite
    assert seen.recovered
    assert not seen.hidden


def test_what_changed_on_an_overflow_is_named_parameter_and_state() -> None:
    class Hasty(GradScaler):
        def _maybe_opt_step(self, optimizer, optimizer_state, *args, **kwargs):
            return optimizer.step(*args, **kwargs)

    seen = drill(
        training(
            scaler_of=lambda arm: Hasty("cpu", enabled=arm.enabled),
            optimizer_of=lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        )
    )
    assert "0.weight" in seen.changed[0]
    assert "momentum_buffer of 2.bias" in seen.changed[0]
    assert not seen.next_loss_finite


def test_it_waits_until_the_scale_fits() -> None:
    high = training(scaler_of=lambda arm: GradScaler("cpu", 2.0**24, enabled=arm.enabled))
    seen = drill(high, steps=20)
    before, after = seen.scale
    assert after == before / 2 < 2.0**23
    assert overflow(workbench(high, HALF), steps=2) is None  # both of them skipped


def test_microbatches_run_on_to_the_update() -> None:
    calls = []
    seen = drill(training(lambda *_: calls.append(1), every=3), steps=4)
    assert (seen.reached, seen.changed, seen.scale) == ((0,), {}, (2.0**16, 2.0**15))
    assert len(calls) == 9  # as it is, with an overflow, and what follows
    assert overflow(workbench(training(every=5), HALF), steps=4) is None


@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_schedulers_are_seen_moving_with_a_step_and_on_a_skipped_one() -> None:
    bold = overflow(workbench(training(move=lambda each, _: each.step()), HALF), 8)
    assert (bold.moves, bold.overflows[0].moves) == ((0,), (0,))
    guarded = training(move=lambda each, skipped: None if skipped else each.step())
    careful = overflow(workbench(guarded, HALF), 8)
    assert (careful.moves, careful.overflows[0].moves) == ((0,), ())
    numbered = training(move=lambda each, _: each.step(5))
    assert overflow(workbench(numbered, HALF), 8).moves == ()


def own_schedule(optimizer):
    class Halved(LambdaLR):  # which is made inside, where nobody watched its class before
        def __init__(self, optimizer):
            super().__init__(optimizer, lambda count: 0.5**count)

    return Halved(optimizer)


SCHEDULES = {
    "LinearLR": lambda optimizer: LinearLR(optimizer, total_iters=100),
    "SequentialLR": lambda optimizer: SequentialLR(
        optimizer, [LinearLR(optimizer), StepLR(optimizer, 1)], milestones=[50]
    ),
    "ChainedScheduler": lambda optimizer: ChainedScheduler(
        [LinearLR(optimizer), StepLR(optimizer, 1)]
    ),
    "OneCycleLR": lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=100),
    "a user's": own_schedule,
}


def scheduled(schedule_of, make, moves, scale=2.0**16):
    """A setup that makes a schedule where `make(step)`, and moves it if `skipped in moves`."""

    def setup(arm):
        model, count, made = mlp(), itertools.count(), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        scaler = GradScaler("cpu", init_scale=scale, enabled=arm.enabled)
        x, y = torch.randn(16, 8), torch.randint(4, (16,))

        def step():
            if make(next(count)):
                made.append(schedule_of(optimizer))
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.cross_entropy(model(x).float(), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            before = scaler.get_scale()
            scaler.update()
            if made and (scaler.get_scale() < before) in moves:
                made[-1].step()
            return loss

        return step

    return setup


ALWAYS, NEVER, IF_TAKEN = {True, False}, set(), {False}  # whether it was skipped
MADE = {
    "at first": lambda count: count == 0,
    "later": lambda count: count == 3,
    "each time": lambda count: count >= 0,
}
HOWEVER_MADE = pytest.mark.parametrize("made", MADE)


@pytest.mark.parametrize("kind", SCHEDULES)
@HOWEVER_MADE
def test_a_schedule_that_is_made_in_a_step_moves_by_its_own_steps_alone(kind, made) -> None:
    def seen(moves, begin=3):
        setup = scheduled(SCHEDULES[kind], MADE[made], moves)
        found = overflow(workbench(setup, HALF), 8, begin)
        return found.moves, found.overflows[0].moves

    assert seen(ALWAYS) == ((0,), (0,))
    assert seen(IF_TAKEN) == ((0,), ())
    assert seen(NEVER) == ((), ())
    assert seen(NEVER, begin=2) == ((), ())  # where "later" is the step that overflows


@pytest.mark.parametrize("kind", SCHEDULES)
@HOWEVER_MADE
def test_a_schedule_made_in_a_step_is_judged_by_its_moves(kind, made) -> None:
    def found(moves):
        return codes(measure(scheduled(SCHEDULES[kind], MADE[made], moves), dtype="float16"))

    assert found(ALWAYS) == ["AMP205"]
    assert found(IF_TAKEN) == []
    assert found(NEVER) == []


@HOWEVER_MADE
def test_making_a_schedule_in_a_skipped_step_is_no_move_on_it(made) -> None:
    careful = scheduled(SCHEDULES["LinearLR"], MADE[made], IF_TAKEN, scale=2.0**24)
    report = measure(careful, dtype="float16", loss_atol=0, steps=20)
    assert report.amp.skipped_steps > 1
    assert codes(report) == []


def adversaries(arm):
    """Two models, optimizers and losses, one scaler; the second steps without it, after unscale."""
    parts = [(model, torch.optim.AdamW(model.parameters())) for model in (mlp(), mlp())]
    x, y = torch.randn(16, 8), torch.randint(4, (16,))

    def step():
        for model, optimizer in parts:
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.cross_entropy(model(x).float(), y)
            arm.scaler.scale(loss).backward()
        arm.scaler.step(parts[0][1])
        arm.scaler.unscale_(parts[1][1])
        parts[1][1].step()
        arm.scaler.update()
        return loss

    return step


def test_losses_are_overflowed_until_every_optimizer_was_reached() -> None:
    seen = overflow(workbench(adversaries, HALF), 8)
    assert seen.optimizers == ("AdamW", "AdamW")
    assert [each.reached for each in seen.overflows] == [(0,), (1,)]
    first, second = seen.overflows
    assert first.changed == {}
    assert "0.weight" not in second.changed[1]  # a second model's names begin with its class
    assert "Sequential#2.0.weight" in second.changed[1]


def test_the_zeros_that_a_fused_optimizer_starts_from_are_no_change() -> None:
    def setup(arm):
        model, count, x = mlp(), itertools.count(), torch.ones(4, 8)
        early = torch.optim.SGD(model[0].parameters(), lr=0.05)
        late = torch.optim.AdamW(model[2].parameters(), fused=True)

        def step():
            loss = model(x).square().mean()
            arm.scaler.scale(loss).backward()
            arm.scaler.step(early)
            if next(count):
                arm.scaler.step(late)
            arm.scaler.update()
            model.zero_grad()
            return loss

        return step

    seen = drill(setup)
    assert seen.reached == (0, 1)
    assert seen.changed == {}


def test_gradients_that_are_made_finite_hide_the_overflow() -> None:
    line = 0

    def edit(_, model, __):
        nonlocal line
        for p in model.parameters():
            line = inspect.currentframe().f_lineno + 1
            torch.nan_to_num_(p.grad, posinf=0.0, neginf=0.0)

    seen = drill(training(edit))
    assert seen.hidden
    assert seen.cleared_at == f"tests/lab/phases/test_drills.py:{line}"
    assert seen.scale == (2.0**16, 2.0**16)


def test_an_overflow_that_the_scaler_saw_is_not_hidden_by_what_comes_after() -> None:
    def setup(arm):
        model, x = mlp(), torch.ones(4, 8)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

        def step():
            optimizer.zero_grad()
            loss = model(x).square().mean()
            arm.scaler.scale(loss).backward()
            arm.scaler.unscale_(optimizer)
            for p in model.parameters():
                torch.nan_to_num_(p.grad, posinf=0.0, neginf=0.0)
            optimizer.step()
            arm.scaler.update()
            return loss

        return step

    seen = drill(setup)
    assert not seen.hidden
    assert seen.scale == (2.0**16, 2.0**15)


def test_an_overflow_that_an_update_between_two_optimizers_lets_through_is_seen_after_it() -> None:
    def setup(arm):
        first, second, x = mlp(), mlp(), torch.ones(4, 8)
        a, b = (torch.optim.SGD(each.parameters(), lr=0.05) for each in (first, second))

        def step():
            a.zero_grad()
            b.zero_grad()
            losses = [each(x).square().mean() for each in (first, second)]
            for loss in losses:
                arm.scaler.scale(loss).backward()
            arm.scaler.step(a)
            arm.scaler.update()
            arm.scaler.step(b)
            arm.scaler.update()
            return losses[0]

        return step

    seen = overflow(workbench(setup, HALF), 8)
    assert [each.reached for each in seen.overflows] == [(0,), (1,)]
    assert not any(each.hidden for each in seen.overflows)


def test_gradients_that_are_dropped_before_the_next_pass_were_not_made_finite() -> None:
    def setup(arm):
        model, x = mlp(), torch.ones(4, 8)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

        def step():
            for _ in range(2):
                optimizer.zero_grad()
                loss = model(x).square().mean()
                arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    first, second = overflow(workbench(setup, HALF), 8).overflows
    assert (first.backward, first.reached, first.hidden) == (True, (), False)
    assert second.reached == (0,)


def test_the_line_that_writes_inf_into_a_weight_is_named() -> None:
    line = 0

    def edit(_, model, __):
        nonlocal line
        with torch.no_grad():
            line = inspect.currentframe().f_lineno + 1
            model[0].weight.add_(model[0].weight.grad, alpha=1e-6)

    seen = drill(training(edit))
    assert seen.ruined == ("0.weight",)
    assert seen.ruined_at == f"tests/lab/phases/test_drills.py:{line}"


def test_the_line_at_which_the_scaler_raises_is_named() -> None:
    def edit(scaler, model, __):
        if not all(bool(p.grad.isfinite().all()) for p in model.parameters()):
            scaler.update()

    seen = drill(training(edit))
    assert seen.raised is not None
    assert seen.raised_at.startswith("tests/lab/phases/test_drills.py:")


def test_of_two_updates_in_one_call_only_the_overflowed_one_counts() -> None:
    def setup(arm):
        step = training()(arm)

        def twice():
            step()
            return step()

        return twice

    seen = drill(setup)
    assert (seen.reached, seen.changed, seen.skipped) == ((0,), {}, ())


def test_inf_gradients_that_are_kept_are_seen_in_what_follows() -> None:
    def setup(arm):
        model, scaler = mlp(), arm.scaler
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        x, y = torch.randn(16, 8), torch.randint(4, (16,))

        def step():
            loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            before = scaler.get_scale()
            scaler.update()
            if scaler.get_scale() >= before:
                optimizer.zero_grad()
            return loss

        return step

    assert not drill(setup).recovered


def test_a_scaler_that_raises_after_the_overflow_is_quoted() -> None:
    def setup(arm):
        model, scaler = mlp(), arm.scaler
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        x, y = torch.randn(16, 8), torch.randint(4, (16,))

        def step():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            if model[0].weight.grad.isfinite().all():
                scaler.update()
            return loss

        return step

    assert drill(setup).raised == "step() has already been called since the last update()."


# The two-scale drill.


def at_two_scales(setup, steps=8, optimizers=1):
    return two_scales(workbench(setup, HALF), steps, optimizers)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_healthy_steps_gradients_are_the_same_to_the_last_bit(kind) -> None:
    seen = at_two_scales(training(optimizer_of=OPTIMIZERS[kind]))
    assert seen.scales == (HIGH, LOW)
    assert [each.parameter for each in seen.gradients] == [
        "0.weight", "0.bias", "2.weight", "2.bias",
    ]  # fmt: skip
    assert {(each.difference, each.ratio) for each in seen.gradients} == {(0, 1)}
    assert (seen.backwards, seen.unscaled) == (1, 0)


def clip(_, model, __):
    nn.utils.clip_grad_norm_(model.parameters(), 0.05)


def test_clipping_while_scaled_shows_in_every_gradient_and_again_without_noise() -> None:
    seen = at_two_scales(training(clip))
    assert [each.ratio for each in seen.gradients] == pytest.approx([LOW / HIGH] * 4, rel=1e-4)
    assert all(each.difference > 0.9 and each.noise == 0 for each in seen.gradients)


def test_a_backward_pass_from_an_unscaled_loss_is_counted() -> None:
    def edit(_, model, __):
        model(torch.ones(1, 8)).square().mean().backward()

    seen = at_two_scales(training(edit))
    assert (seen.backwards, seen.unscaled) == (2, 1)
    assert any(each.difference > 1e-4 for each in seen.gradients)


def test_what_differs_by_itself_is_noise() -> None:
    draw = random.Random(0)

    def edit(_, model, __):
        for p in model.parameters():
            p.grad.mul_(1 + draw.random())

    seen = at_two_scales(training(edit))
    assert all(each.difference > 1e-4 for each in seen.gradients)
    assert all(each.noise > each.difference / 100 for each in seen.gradients)


OUTSIDE = GradScaler("cpu")
OUTSIDE.scale(torch.ones(()))

SCALERS = {
    "made and used outside": lambda arm: OUTSIDE if arm.enabled else arm.scaler,
    "as it is made": lambda arm: GradScaler("cpu", enabled=arm.enabled),
    "subclass": lambda arm: type("Own", (GradScaler,), {})("cpu", enabled=arm.enabled),
    "loaded": lambda arm: loaded(GradScaler("cpu", enabled=arm.enabled)),
    "used before": lambda arm: used(GradScaler("cpu", enabled=arm.enabled)),
}


def loaded(scaler):
    state = {"scale": 8.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 7}
    scaler.load_state_dict({**state, "_growth_tracker": 0})
    return scaler


def used(scaler):
    scaler.scale(torch.ones(()))
    return scaler


@pytest.mark.parametrize("made", SCALERS)
def test_the_scale_is_forced_on_scalers_however_they_are_made(made) -> None:
    scales, dtypes = [], set()

    def edit(scaler, model, loss):
        scales.append(scaler.get_scale())
        dtypes.add(model(torch.ones(1, 8)).dtype)

    at_two_scales(training(edit, scaler_of=SCALERS[made]))
    assert scales == [HIGH, LOW]


def test_autocast_regions_are_in_force_and_cast_to_float32() -> None:
    seen = set()

    def setup(arm):
        step = training()(arm)

        def look():
            with arm.autocast():
                product = torch.ones(2, 2).half() @ torch.ones(2, 2)
                seen.add((torch.is_autocast_enabled("cpu"), product.dtype))
            return step()

        return look

    at_two_scales(setup)
    assert seen == {(True, torch.float32)}


def test_it_runs_up_to_the_first_step_of_each_optimizer() -> None:
    calls = []
    seen = at_two_scales(training(lambda *_: calls.append(1), every=3))
    assert len(calls) == 6
    assert len(seen.gradients) == 4
    both = at_two_scales(adversaries, optimizers=2)
    assert [each.optimizer for each in both.gradients] == [0] * 4 + [1] * 4
    assert {each.difference for each in both.gradients} == {0}


def second_in_every_other_step(arm):
    """Two optimizers, of which the second steps half as often, and the first clips in between."""
    first, second, count, x = mlp(), mlp(), itertools.count(1), torch.randn(4, 8)
    often, seldom = (torch.optim.SGD(each.parameters(), lr=0.01) for each in (first, second))

    def step():
        first.zero_grad(), second.zero_grad()
        loss = first(x).square().mean() + second(x).square().mean()
        arm.scaler.scale(loss).backward()
        if next(count) % 2 == 0:
            clip(None, first, None)
            arm.scaler.step(seldom)
        arm.scaler.step(often)
        arm.scaler.update()
        return loss

    return step


def test_each_optimizer_is_looked_at_in_its_first_step_alone() -> None:
    seen = at_two_scales(second_in_every_other_step, optimizers=2)
    assert [each.optimizer for each in seen.gradients] == [0] * 4 + [1] * 4
    assert {each.difference for each in seen.gradients} == {0}


def test_a_backward_pass_within_another_is_part_of_it() -> None:
    def setup(arm):
        model, x = mlp(), torch.randn(4, 8, requires_grad=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def step():
            optimizer.zero_grad()
            loss = checkpoint(model, x, use_reentrant=True).square().mean()
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    assert at_two_scales(setup).backwards == 1


def test_gradients_in_float16_are_told_since_they_may_underflow_by_themselves() -> None:
    def hard(_, model, __):
        (model[0](torch.ones(1, 8)).half().float().sum() * 0).backward()

    assert at_two_scales(training(hard)).in_half
    assert not at_two_scales(training()).in_half


def test_gradients_that_are_not_finite_in_float32_show_nothing() -> None:
    def setup(arm):
        weight = nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([weight], lr=0.1)

        def step():
            optimizer.zero_grad()
            loss = weight.sqrt().sum()
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    with pytest.raises(NothingShown, match="skipped at the loss scale 16384 in float32"):
        at_two_scales(setup)


# No trace.

BOTH = pytest.mark.parametrize(
    "run", [lambda bench: overflow(bench, 8), lambda bench: two_scales(bench, 8, 1)]
)


@BOTH
def test_all_that_was_patched_is_put_back(run) -> None:
    before = patched_things()
    run(workbench(training(), HALF))
    assert patched_things() == before


@BOTH
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_it_is_put_back_where_the_step_raises_too(run, error) -> None:
    def edit(*_):
        raise error

    before = patched_things()
    with pytest.raises(error):
        run(workbench(training(edit), HALF))
    assert patched_things() == before


@BOTH
def test_nothing_is_compiled(run) -> None:
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph

    def setup(arm):
        model, x = nn.Linear(8, 4), torch.randn(4, 8)
        forward = torch.compile(model, backend=backend)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def step():
            optimizer.zero_grad()
            loss = forward(x).square().mean()
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    assert run(workbench(setup, HALF)) is not None
    assert compiled == []


@BOTH
def test_a_scaler_from_outside_is_left_as_it_was(run) -> None:
    outside = GradScaler("cpu", init_scale=2.0**12)
    outside.scale(torch.ones(()))
    run(workbench(training(scaler_of=lambda arm: outside if arm.enabled else arm.scaler), HALF))
    assert outside.get_scale() == 2.0**12
    assert outside._growth_tracker == 0
    assert outside._init_scale == 2.0**12
    assert not outside._per_optimizer_states


def test_a_drill_that_raises_is_noted_and_ctrl_c_passes() -> None:
    notes: list[str] = []

    def fail():
        raise ValueError("no\nmore")

    def stop():
        raise KeyboardInterrupt

    assert attempted("overflow drill", fail, notes.append) is None
    assert notes == ["the overflow drill ended early, and its rules are silent: ValueError: no"]
    with pytest.raises(KeyboardInterrupt):
        attempted("overflow drill", stop, notes.append)


# In an experiment.


def clipped(_, model, __):
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9, error_if_nonfinite=True)


def asserted(_, model, __):
    assert all(p.grad.isfinite().all() for p in model.parameters()), "overflow"


def ended(_, model, __):
    if not all(p.grad.isfinite().all() for p in model.parameters()):
        raise SystemExit("the gradients are gone. Good night.")


@pytest.mark.parametrize(
    ("edit", "raised"),
    [
        (clipped, "RuntimeError: The total norm of order 2.0"),
        (asserted, "AssertionError: overflow"),
        (ended, "SystemExit: the gradients are gone"),
    ],
)
def test_a_step_that_raises_at_an_overflow_is_an_error_at_its_line(edit, raised) -> None:
    report = measure(training(edit), dtype="float16")
    assert codes(report) == ["AMP211"]
    assert report.notes == ()
    [finding] = report.findings
    assert finding.evidence["raised"].startswith(raised)
    line = edit.__code__.co_firstlineno
    assert finding.location.startswith("tests/lab/phases/test_drills.py:")
    assert line < int(finding.location.rpartition(":")[2]) <= line + 2


def test_a_step_that_only_refuses_an_infinite_loss_is_drilled_by_its_gradients() -> None:
    def setup(arm):
        model, scaler = mlp(), arm.scaler
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        x, y = torch.randn(16, 8), torch.randint(4, (16,))

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.cross_entropy(model(x).float(), y)
            scaled = scaler.scale(loss)
            if not torch.isfinite(scaled):
                raise ValueError("the loss is not finite")
            scaled.backward()
            scaler.step(optimizer)
            scaler.update()
            return loss

        return step

    assert codes(measure(setup, dtype="float16")) == []
    found = drill(setup)
    assert found.died is None
    assert found.reached == (0,)
    assert found.skipped == (0,)


def test_what_raises_before_the_overflow_is_no_answer_to_it() -> None:
    calls = itertools.count()

    def edit(scaler, *_):
        if scaler.is_enabled() and next(calls) == 8 + 8 + 2:  # behind the parity run's
            raise ValueError("no more data")

    report = measure(training(edit), dtype="float16", steps=8)
    assert codes(report) == []


def test_a_scaler_that_is_off_by_default_is_told_of_and_one_that_is_off_by_choice_is_not() -> None:
    [note] = measure(training()).notes
    assert "the GradScaler is off, because bfloat16" in note
    assert "--amp-dtype=float16" in note
    assert measure(training(), dtype="bfloat16").notes == ()
    assert measure(training(), dtype="float16").notes == ()


def test_a_step_that_uses_no_scaler_misses_none() -> None:
    def setup(_):
        model, x = mlp(), torch.randn(16, 8)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

        def step():
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(x).float().square().mean()
            loss.backward()
            optimizer.step()
            return loss

        return step

    assert not any("GradScaler" in note for note in measure(setup).notes)


def builds(dtype):
    arms = []

    def setup(arm):
        arms.append(arm.name)
        return training()(arm)

    report = measure(setup, dtype=dtype)
    assert codes(report) == []
    return arms.count("amp")


def test_only_a_live_scaler_is_drilled() -> None:
    assert builds("float16") == builds("bfloat16") + 3  # an overflow, and one at each scale


def test_what_a_drill_makes_the_step_warn_of_is_none_of_the_tests() -> None:
    def edit(_, model, __):
        if not model[0].weight.grad.isfinite().all():
            warnings.warn("overflow", stacklevel=1)  # an error here, were it not left out

    report = measure(training(edit), dtype="float16")
    assert (report.verdict, codes(report), report.notes) == ("pass", [], ())
