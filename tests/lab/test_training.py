"""A whole training as steps of the experiment, and its epochs."""

from __future__ import annotations

import gc
import itertools
import math
from collections import UserDict

import pytest
import torch
import torch.nn.functional as F

from pytest_amp import AmpError, Training
from pytest_amp.experiment import training as experiment
from pytest_amp.experiment.job import Job
from pytest_amp.lab.machine.device import Device
from pytest_amp.lab.training import Steps, as_steps
from pytest_amp.progress import Progress
from pytest_amp.settings.resolved import resolve
from tests.helpers.lab import CPU, codes


def fitting(
    epochs=2, every=1, batches=8, evaluate=True, accuracy=False, worse=0.0, clip=None, lr=0.05,
    shown=None,
):  # fmt: skip
    """A setup of a small classifier; under amp its validation loss is `worse` by that share."""

    def setup(arm):
        model = torch.nn.Linear(8, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        inputs = torch.randn(batches, 16, 8)
        targets = inputs[..., :4].argmax(-1)
        count = 0

        def loss_of(inputs, targets):
            with arm.autocast():
                return F.cross_entropy(model(inputs), targets)

        def step(batch):
            nonlocal count
            count += 1
            loss = loss_of(*batch)
            arm.scaler.scale(loss / every).backward()
            if count % every == 0:
                if clip is not None:
                    arm.scaler.unscale_(optimizer)
                    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
                arm.scaler.step(optimizer)
                arm.scaler.update()
                optimizer.zero_grad()
            return {"loss": loss, "accuracy": 0.5} if accuracy else loss

        @torch.no_grad()
        def evaluated():
            if shown is not None:
                shown.append((arm.name, model.weight.detach().clone()))
            loss = loss_of(inputs[0], targets[0])
            found = {"loss": loss * (1 + worse * arm.enabled)}
            if accuracy:
                found["accuracy"] = 0.9 - (0.1 if arm.enabled else 0.0)
            return found

        given = list(zip(inputs, targets, strict=True))
        return Training(step, given, evaluated if evaluate else None, epochs)

    return setup


def trained(setup, **given):
    settings = resolve([("cli", {"static": True, "steps": 4, **given})])
    job = Job("test_it.py::test_training", as_steps(setup), Device(CPU), settings)
    return experiment.run(job, Progress())


def test_each_epoch_of_each_arm_is_kept() -> None:
    report = trained(fitting(epochs=3))
    assert report.verdict == "pass"
    assert codes(report) == []
    for arm in ("fp32", "amp"):
        epochs = report.training[arm]
        assert [epoch.epoch for epoch in epochs] == [1, 2, 3]
        for epoch in epochs:
            assert epoch.train["perplexity"] == pytest.approx(math.exp(epoch.train["loss"]))
            assert epoch.val["perplexity"] == pytest.approx(math.exp(epoch.val["loss"]))
            assert epoch.learning_rate == 0.05
            assert epoch.gradient_norm > 0
            assert epoch.epoch_duration > 0
            assert epoch.samples_per_second == pytest.approx(8 * 16 / epoch.epoch_duration)
        losses = [epoch.train["loss"] for epoch in epochs]
        assert losses == sorted(losses, reverse=True)
    assert report.phases_s["training"] > 0


def test_the_loss_of_an_epoch_is_the_mean_of_its_batches() -> None:
    seen = []

    def setup(arm):
        losses = itertools.cycle([1.0, 2.0, 6.0, 3.0, 3.0, 3.0])

        def step(batch):
            loss = next(losses)
            seen.append((arm.name, loss))
            return loss

        return Training(step, [torch.ones(4, 2)] * 3, epochs=2)

    report = trained(setup)
    assert [epoch.train["loss"] for epoch in report.training["amp"]] == [3.0, 3.0]
    assert report.training["amp"][0].gradient_norm is None  # no optimizer was seen
    assert report.gate("val_loss_diff").reason == "nothing was evaluated"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("every", [1, 2, 4])
def test_a_step_is_one_of_the_optimizer(every: int, dtype: str) -> None:
    report = trained(fitting(every=every), dtype=dtype)
    assert (report.verdict, codes(report)) == ("pass", [])
    assert len(report.amp.losses) == 4
    if dtype == "float16":
        assert len(report.amp.scales) == 4  # one update a step


def test_a_clipped_norm_is_the_one_that_the_optimizer_got() -> None:
    report = trained(fitting(clip=0.01))
    for epochs in report.training.values():
        assert all(epoch.gradient_norm == pytest.approx(0.01, rel=0.01) for epoch in epochs)


def test_skipped_steps_are_skipped_in_both_arms() -> None:
    shown = []
    setup = fitting(epochs=1, shown=shown)
    report = trained(setup, dtype="float16", init_scale=2.0**40, max_loss_diff=None)
    ends = dict(shown[-2:])
    assert torch.allclose(ends["fp32"], ends["amp"], atol=1e-3)  # it skips most of eight steps
    assert report.gate("val_loss_diff").verdict == "pass"


def test_a_validation_loss_that_differs_fails() -> None:
    report = trained(fitting(worse=0.2))
    gate = report.gate("val_loss_diff")
    assert (report.verdict, gate.verdict) == ("fail", "fail")
    assert gate.value == pytest.approx(0.2, rel=0.1)
    assert "is beyond 5.0%; rounding alone moves this training's loss by" in gate.reason
    assert trained(fitting(worse=0.2), max_val_loss_diff=0.5).verdict == "pass"
    off = trained(fitting(worse=0.2), max_val_loss_diff="none").gate("val_loss_diff")
    assert off.verdict == "not_gated"


def test_an_accuracy_that_differs_fails_where_it_is_gated() -> None:
    report = trained(fitting(accuracy=True))
    assert report.gate("accuracy_diff").verdict == "not_gated"
    assert report.gate("accuracy_diff").value == pytest.approx(0.1)
    assert report.training["amp"][0].train["accuracy"] == 0.5
    assert set(report.amp.losses_by_key) == {"loss"}  # which is no loss to compare
    report = trained(fitting(accuracy=True), max_accuracy_diff=0.05)
    assert report.gate("accuracy_diff").verdict == "fail"


def test_a_training_that_rounding_alone_moves_further_is_inconclusive() -> None:
    """A reference that doubles whatever its weights differ by, step by step."""

    def setup(arm):
        weight = torch.nn.Parameter(torch.full((4,), 0.3))
        optimizer = torch.optim.SGD([weight], lr=1.0)

        def step(batch):
            optimizer.zero_grad()
            loss = -0.5 * (weight - 0.3 - 1e-6 * arm.enabled).square().sum()
            loss.backward()
            optimizer.step()
            return 1.0

        return Training(
            step, [torch.ones(1)] * 24, lambda: {"loss": 1 + weight.detach().sub(0.3).abs().sum()}
        )

    report = trained(setup, ignore="AMP", steps=2)
    gate = report.gate("val_loss_diff")
    assert gate.verdict == "inconclusive"
    assert "but rounding alone moves this training's loss by" in gate.reason


def test_a_validation_loss_that_is_not_finite_fails() -> None:
    report = trained(fitting(worse=float("nan")))
    gate = report.gate("val_loss_diff")
    assert (gate.verdict, gate.value) == ("fail", None)
    assert gate.reason == "the amp validation loss is not finite in epoch 2"


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (lambda _: None, "setup(arm) returned NoneType, not a pytest_amp.Training"),
        (lambda _: Training(lambda batch: batch, []), "has no batch in epoch 1"),
        (lambda _: Training(lambda batch: batch, iter([1])), "not a list_iterator, which is used"),
        (lambda _: Training(None, [1]), "Training(step=...) takes a function, not None"),
        (
            lambda _: Training(lambda batch: batch, [1], 3),
            "Training(evaluate=...) takes a function",
        ),
        (lambda _: Training(lambda batch: batch, [1], epochs=0), "a whole number of 1 or more"),
        (lambda _: Training(lambda _: 1.0, [1], lambda: 2.0), "evaluate() returned 2.0: return a"),
    ],
)
def test_what_is_no_training_is_told(training, message: str) -> None:
    with pytest.raises(AmpError) as told:
        trained(training)
    assert message in str(told.value)


def test_batches_that_are_there_only_once_are_told() -> None:
    class Once:
        def __init__(self):
            self.left = [torch.ones(1)] * 60

        def __iter__(self):
            while self.left:
                yield self.left.pop()

    with pytest.raises(AmpError, match="has no batch in epoch 2"):
        trained(lambda _: Training(lambda _: 1.0, Once(), epochs=2))


def test_steps_know_after_the_first_how_many_batches_are_one() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls = 0

    def step(batch):
        nonlocal calls
        calls += 1
        model(batch).sum().backward()
        if calls % 3 == 0:
            optimizer.step()
        return float(calls)

    steps = Steps(Training(step, [torch.ones(1, 2)] * 5))
    assert [steps()["loss"] for _ in range(3)] == [2.0, 5.0, 8.0]
    assert calls == 9


# -- what a review found --------------------------------------------------------------------------


def one_batch(step, batch=None, evaluate=None, epochs=1, count=4):
    """A training of one batch, again and again."""
    batch = torch.ones(4, 2) if batch is None else batch
    return lambda arm: Training(lambda given: step(arm, given), [batch] * count, evaluate, epochs)


@pytest.mark.parametrize("fused", [False, True])
def test_the_norm_of_a_fused_optimizer_is_unscaled(fused: bool) -> None:
    def setup(arm):
        model = torch.nn.Linear(8, 4)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
        inputs = torch.randn(16, 8)

        def step(_):
            optimizer.zero_grad()
            with arm.autocast():
                loss = model(inputs).square().mean()
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return Training(step, range(4))

    report = trained(setup, dtype="float16", init_scale=1024.0)
    norms = {arm: epochs[0].gradient_norm for arm, epochs in report.training.items()}
    assert norms["amp"] == pytest.approx(norms["fp32"], rel=0.01)


def test_sparse_gradients_have_a_norm_too() -> None:
    def setup(arm):
        model = torch.nn.Embedding(10, 4, sparse=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def step(rows):
            optimizer.zero_grad()
            loss = model(rows).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        return Training(step, [torch.tensor([1, 2, 2])] * 4)

    assert trained(setup, ignore="AMP").training["amp"][0].gradient_norm > 0


def test_the_learning_rate_is_the_one_at_the_end() -> None:
    def setup(arm):
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([weight], lr=1.0)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

        def step(_):
            optimizer.zero_grad()
            loss = (weight * 1e-6).sum()
            loss.backward()
            optimizer.step()
            schedule.step()
            return 1.0

        return Training(step, range(3))

    assert trained(setup, ignore="AMP").training["amp"][0].learning_rate == 0.125


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda _: None, "no loss: the loss is None"),
        (lambda count: {"loss": 1.0, **({"aux": 1.0} if count % 2 else {})}, "the same keys"),
        (lambda _: {"accuracy": 0.5}, "an accuracy and no loss"),
    ],
)
def test_what_is_no_loss_is_told_under_accumulation_too(returned, message: str) -> None:
    def setup(arm):
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([weight], lr=1e-6)
        count = 0

        def step(_):
            nonlocal count
            count += 1
            weight.sum().backward()
            if count % 2 == 0:
                optimizer.step()
            return returned(count)

        return Training(step, range(4))

    with pytest.raises(AmpError, match=message):
        trained(setup)


def test_several_losses_without_one_of_that_name_have_the_first_in_the_table() -> None:
    report = trained(one_batch(lambda *_: {"d": 2.0, "g": 1.0}))
    [epoch] = report.training["amp"]
    assert (epoch.train["loss"], epoch.train["d"], epoch.train["g"]) == (2.0, 2.0, 1.0)


def test_losses_of_both_infinities_are_no_crash() -> None:
    signs = itertools.cycle([math.inf, -math.inf])
    report = trained(one_batch(lambda *_: next(signs)), ignore="AMP", max_loss_diff=None)
    assert math.isnan(report.training["amp"][0].train["loss"])


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        ({"ids": torch.ones(6, 5), "mask": torch.ones(6, 5)}, 6),
        (UserDict({"ids": torch.ones(6, 5)}), 6),
        ((torch.ones(3, 2), torch.ones(3)), 3),
        ([torch.ones(3, 2), torch.ones(2, 2)], None),
        (7, None),
    ],
)
def test_examples_are_counted_where_a_batch_tells(batch, size) -> None:
    [epoch] = trained(one_batch(lambda *_: 1.0, batch)).training["amp"]
    found = epoch.samples_per_second
    assert (
        found is None if size is None else found == pytest.approx(4 * size / epoch.epoch_duration)
    )


def test_a_threshold_of_zero_is_a_threshold() -> None:
    def setup(arm):
        value = math.nan if arm.enabled else 1.0
        return Training(lambda _: 1.0, range(4), lambda: {"loss": value})

    assert trained(setup, max_val_loss_diff=0).gate("val_loss_diff").verdict == "fail"


def test_without_an_evaluation_nothing_is_missing_unless_a_threshold_was_chosen() -> None:
    gate = trained(one_batch(lambda *_: 1.0)).gate("val_loss_diff")
    assert (gate.threshold, gate.unmeasured) == (None, False)
    chosen = trained(one_batch(lambda *_: 1.0), max_val_loss_diff=0.1).gate("val_loss_diff")
    assert chosen.unmeasured


def test_what_evaluate_returns_is_named_where_it_is_no_number() -> None:
    with pytest.raises(AmpError, match="evaluate\\(\\) returned 'confusion', which is no number"):
        trained(one_batch(lambda *_: 1.0, evaluate=lambda: {"loss": 1, "confusion": torch.eye(3)}))


def test_what_a_step_raises_in_the_training_tells_its_place() -> None:
    def setup(arm):
        calls = itertools.count()

        def step(_):
            if next(calls) == 6:
                raise RuntimeError("boom")
            return 1.0

        return Training(step, range(4), epochs=2)

    with pytest.raises(RuntimeError, match="boom") as raised:
        trained(setup, steps=2, ignore="AMP")
    assert any("raised in the amp arm" in note for note in raised.value.__notes__)


def test_a_reference_that_diverges_by_rounding_alone_is_no_yardstick() -> None:
    from pytest_amp.judge import training as judge
    from pytest_amp.judge.case import Limits
    from pytest_amp.results.training import Epoch

    fp32, amp, again = ([Epoch(1, {"loss": loss}, {"loss": loss})] for loss in (1.0, 2.0, math.nan))
    gate, _ = judge.judge(fp32, amp, Limits(), lambda: again)
    assert gate.verdict == "inconclusive"
    assert "rounding alone makes this training's loss diverge" in gate.reason


def test_a_schedule_that_raises_at_its_end_is_told_what_comes_behind_it() -> None:
    def setup(arm):
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=4)

        def step(_):
            optimizer.zero_grad()
            weight.sum().backward()
            optimizer.step()
            schedule.step()
            return 1.0

        return Training(step, range(4))

    with pytest.raises(ValueError, match="Tried to step") as raised:
        trained(setup, steps=8)
    assert any(
        "which goes on behind the training's last batch" in n for n in raised.value.__notes__
    )


def test_a_loader_s_workers_end_with_the_arm() -> None:
    """A generator in a reference cycle would end them by a collection, after five seconds each."""
    closed = []

    class Batches:
        def __iter__(self):
            try:
                while True:
                    yield torch.ones(2, 2)
            finally:
                closed.append(True)

    gc.disable()
    try:
        steps = Steps(Training(lambda _: 1.0, Batches()))
        steps()
        del steps
        assert closed == [True]
    finally:
        gc.enable()
