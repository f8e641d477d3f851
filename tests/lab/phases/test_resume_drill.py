"""The resume drill: what a checkpoint leaves out is found, and nothing else is taken for it."""

from __future__ import annotations

import gc
import itertools
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import StepLR

from pytest_amp.errors import AmpError
from pytest_amp.experiment.job import phases_of
from pytest_amp.lab.phases.drill import NothingShown
from pytest_amp.lab.phases.resume_drill import LEAST, MOST, resume
from pytest_amp.progress import Progress
from tests.helpers.lab import codes, measure, workbench

HALF = torch.float16
ALL = ("model", "optimizer", "scheduler", "scaler")


def training(saved=ALL, *, every=1, edit=lambda *_: None, calls=None, wrap=lambda each: each):
    """A setup whose checkpoint holds what `saved` names; `edit(count)` is added to the loss."""

    def setup(arm):
        model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        scheduler, count = StepLR(optimizer, 2, gamma=0.7), itertools.count(1)
        x, y = torch.randn(16, 8), torch.randint(4, (16,))
        if calls is not None:
            calls.append(arm.name)

        def step():
            number = next(count)
            with arm.autocast():
                loss = F.cross_entropy(model(x).float(), y)
            more = edit(number)
            arm.scaler.scale(loss if more is None else loss * more).backward()
            if number % every == 0:
                before = arm.scaler.get_scale()
                arm.scaler.step(optimizer)
                arm.scaler.update()
                optimizer.zero_grad()
                if arm.scaler.get_scale() >= before:
                    scheduler.step()
            return loss

        everything = {
            "model": model,
            "optimizer": optimizer,
            "scheduler": scheduler,
            "scaler": arm.scaler,
        }
        arm.checkpoint(**{name: wrap(everything[name]) for name in saved})
        return step

    return setup


def without(*names):
    return tuple(name for name in ALL if name not in names)


def test_a_checkpoint_with_everything_leaves_nothing_out() -> None:
    bench = workbench(training(), HALF)
    seen = resume(bench, 8)
    assert (seen.after, seen.left_out) == (4, ())
    assert bench.builds == 2


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("every", [1, 3])
def test_what_is_left_out_is_named(name, every) -> None:
    seen = resume(workbench(training(without(name), every=every), HALF), 8)
    [missing] = seen.left_out
    assert (missing.kind, missing.in_checkpoint) == (name, False)
    assert seen.noise == 0
    assert seen.after == {1: 4, 3: 6}[every]  # it waits for the optimizer
    assert len(missing.losses) == len(missing.differences) == seen.after
    if name == "scaler":
        assert missing.scales == (2.0**15, 2.0**16)
    elif (name, every) == ("scheduler", 3):
        assert missing.state > 0.1  # its rate has yet to change
    else:
        assert max(missing.differences) > 1e-3


def test_what_follows_is_told_of_each_thing_alone() -> None:
    bench = workbench(training(without("scaler", "scheduler")), HALF)
    seen = resume(bench, 8)
    assert {each.kind for each in seen.left_out} == {"scaler", "scheduler"}
    scaler, scheduler = sorted(seen.left_out, key=lambda each: each.kind)
    assert max(scaler.differences) == 0  # a power of two more changes no loss
    assert scheduler.scales is None
    assert max(scheduler.differences) > 1e-4
    assert bench.builds == 5  # with all, without, as a control, and two alone


@pytest.mark.parametrize(("steps", "after"), [(2, LEAST), (12, 6), (100, MOST)])
def test_it_is_half_of_the_steps_within_bounds(steps, after) -> None:
    assert resume(workbench(training(), HALF), steps).after == after


def test_two_that_hold_the_same_state_do_not_hide_each_other() -> None:
    class Trainer:
        def __init__(self, scaler):
            self.scaler = scaler

        def state_dict(self):
            return self.scaler.state_dict()

        def load_state_dict(self, state):
            self.scaler.load_state_dict(state)

    inner, kept = training(without("scaler")), []

    def setup(arm):
        kept.append(Trainer(arm.scaler))
        return inner(arm)

    seen = resume(workbench(setup, HALF), 8)
    assert [each.kind for each in seen.left_out] == ["scaler"]


def test_a_wrapper_that_forgets_is_told_from_one_that_was_left_out() -> None:
    def setup(arm):
        model, x = nn.BatchNorm1d(4), torch.randn(8, 4) + 3
        model.register_buffer("mean", torch.zeros(()), persistent=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def step():
            model.mean += 1
            optimizer.zero_grad()
            loss = (model(x) * model.mean).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        arm.checkpoint(net=model, optimizer=optimizer)
        return step

    [missing] = resume(workbench(setup), 8).left_out
    assert (missing.kind, missing.name, missing.in_checkpoint) == ("model", "BatchNorm1d", True)


def test_a_step_that_does_not_bear_an_overflow_is_resumed_without() -> None:
    class Fatal(Exception):
        pass

    def setup(arm):
        inner = training(without("scaler"))(arm)

        def step():
            loss = inner()
            if arm.scaler.is_enabled() and arm.scaler.get_scale() < 2.0**16:
                raise Fatal
            return loss

        return step

    assert resume(workbench(setup, HALF), 8).left_out == ()  # its scale is still the first


def test_a_step_that_does_not_repeat_itself_is_not_judged() -> None:
    ever = itertools.count(1)  # over all builds
    setup = training(without("optimizer"), edit=lambda _: 1 + next(ever) / 10)
    with pytest.raises(NothingShown, match="does not repeat itself"):
        resume(workbench(setup), 8)


def test_state_that_cannot_be_carried_over_is_not_the_checkpoints() -> None:
    def setup(arm):
        model, x = nn.Linear(4, 4), torch.randn(8, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def step():
            optimizer.zero_grad()
            changes = model.weight._version  # which loading adds to
            loss = (model(x) * (1 + changes % 7)).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        arm.checkpoint(model=model)
        return step

    with pytest.raises(NothingShown, match="could not be carried over"):
        resume(workbench(setup), 8)


def test_without_an_optimizer_there_is_nothing_to_wait_for() -> None:
    def setup(arm):
        model, x = nn.Linear(4, 4), torch.randn(8, 4)
        arm.checkpoint(model=model)
        return lambda: model(x).square().mean()

    with pytest.raises(NothingShown, match="no optimizer stepped"):
        resume(workbench(setup), 8)


def test_a_checkpoint_costs_builds_only_where_one_is_named() -> None:
    def builds(setup):
        calls = []
        report = measure(setup(calls), dtype="bfloat16")
        return len(calls), codes(report)

    def silent(calls):
        inner = training(calls=calls)

        def setup(arm):
            step = inner(arm)
            arm._saved = None  # as if it had not been called
            return step

        return setup

    with_it = builds(lambda calls: training(without("scaler"), calls=calls))
    assert with_it == (builds(silent)[0] + 2, [])


def test_the_drills_time_counts_as_the_inspections() -> None:
    progress = Progress()
    progress.seconds.update({"resume drill": 1.0, "accumulation drill": 2.0})
    assert phases_of(progress)["inspection"] == 3.0


def test_an_object_that_cannot_be_saved_is_an_error_that_names_it() -> None:
    def wrap(each):
        return each if isinstance(each, nn.Module) else lambda: each

    with pytest.raises(AmpError, match=r"arm\.checkpoint\(scheduler=\.\.\.\) got a function"):
        measure(training(("model", "scheduler"), wrap=wrap))


def test_a_checkpoint_may_be_named_in_several_lines() -> None:
    inner = training(without("scaler", "scheduler"))

    def setup(arm):
        step = inner(arm)
        arm.checkpoint(scaler=arm.scaler)
        return step

    assert [each.kind for each in resume(workbench(setup, HALF), 8).left_out] == ["scheduler"]


def test_the_place_is_the_line_of_the_checkpoint() -> None:
    report = measure(training(without("optimizer")), dtype="bfloat16")
    [found] = report.findings
    lines = Path(__file__).read_text("utf-8").splitlines()
    line = 1 + next(i for i, text in enumerate(lines) if "arm.checkpoint(**" in text)
    assert (found.code, found.location) == (
        "AMP212",
        f"tests/lab/phases/test_resume_drill.py:{line}",
    )


def test_no_build_is_alive_while_the_next_is_made() -> None:
    made: list[weakref.ref] = []

    def setup(arm):
        gc.collect()
        assert [each for each in made if each() is not None] == []
        step = training(without("optimizer", "scaler"))(arm)
        made.append(weakref.ref(arm._saved.state["model"]))
        return step

    assert len(resume(workbench(setup, HALF), 8).left_out) == 2
    assert len(made) == 5
