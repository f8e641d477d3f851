"""Steps that are given a closure, as Lightning's all are: what is looked at is behind its call."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.amp import GradScaler
from torch.optim import LBFGS, SGD, Adam, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from pytest_amp.lab.phases.overflow_drill import overflow
from pytest_amp.lab.scaling.step_watch import Replay, StepWatch
from pytest_amp.lab.watch.events import OptimizerSteps
from pytest_amp.lab.watch.operators import OpRecord
from tests.helpers.lab import codes, measure, train, workbench
from tests.helpers.steps import parameter, sgd

BY = {
    "position": lambda optimizer, closure: optimizer.step(closure),
    "keyword": lambda optimizer, closure: optimizer.step(closure=closure),
    "disabled scaler": lambda optimizer, closure: GradScaler("cpu", enabled=False).step(
        optimizer, closure
    ),
}
HOWEVER = pytest.mark.parametrize("by", BY)


class Descent(Optimizer):
    """A user's own, which looks for no gradient; `calls` of its closure in each step."""

    def __init__(self, parameters, calls=1):
        super().__init__(parameters, {"lr": 0.5})
        self.calls = calls

    @torch.no_grad()
    def step(self, closure=None):
        closure = closure and torch.enable_grad()(closure)
        losses = [closure() for _ in range(self.calls if closure else 0)]
        for each in self.param_groups[0]["params"]:
            each.sub_(each.grad, alpha=0.5)
        return losses[0] if losses else None


class Normed(Descent):
    """One that can't do without any parameter."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        torch.stack([each.grad for each in self.param_groups[0]["params"]]).norm()
        return loss


class SharpnessAware(Optimizer):
    """Uphill by the gradients that are there, then down by those that its closure finds there."""

    def __init__(self, parameters, rho=0.05):
        super().__init__(parameters, {})
        self.base = SGD(self.param_groups, lr=0.05)
        self.param_groups = self.base.param_groups
        self.rho = rho

    @torch.no_grad()
    def step(self, closure):
        given = [param for param in self.param_groups[0]["params"] if param.grad is not None]
        norm = torch.stack([param.grad.norm() for param in given]).norm()
        ways = [param.grad * (self.rho / (norm + 1e-12)) for param in given]
        for param, way in zip(given, ways, strict=True):
            param.add_(way)
        with torch.enable_grad():
            loss = closure()
        for param, way in zip(given, ways, strict=True):
            param.sub_(way)
        self.base.step()
        return loss


class Wrapped(Optimizer):
    """As frameworks wrap one: no `__init__` of torch's, and so no hooks of torch's."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self, closure=None):
        return self.optimizer.step(closure)


class Twice(SGD):
    """Calls its parent's step, which has hooks of its own once there was an SGD."""

    def step(self, closure=None):
        return super().step(closure)


def closing(param, losses=None):
    """A closure whose gradient is 1, and that counts its calls in `losses`."""
    losses = [] if losses is None else losses

    def closure():
        param.grad = torch.ones_like(param)
        losses.append(param.item())
        return param.detach().clone()

    return closure


# When the watchers are told.


class Diary:
    """What it was told, in order, each with the gradient at that moment."""

    def __init__(self):
        self.entries = []

    def watching(self, name=""):
        def note(what, optimizer):
            grads = [param.grad for group in optimizer.param_groups for param in group["params"]]
            self.entries.append((name + what, None if grads[0] is None else grads[0].item()))

        def begins(optimizer, closure):
            note("begins", optimizer)
            return closure

        return OptimizerSteps(
            lambda optimizer, _: note("before", optimizer),
            partial(note, "after"),
            begins,
            lambda optimizer, _: note("again", optimizer),
        )


@HOWEVER
def test_gradients_are_looked_at_behind_the_closure(by) -> None:
    diary, param = Diary(), parameter()
    with diary.watching():
        assert BY[by](sgd(param), closing(param)) == 1
    assert diary.entries == [("begins", None), ("before", 1), ("after", 1)]


def test_without_a_closure_they_are_there_from_the_beginning() -> None:
    diary, param = Diary(), parameter()
    param.grad = torch.ones(1)
    with diary.watching():
        sgd(param).step()
        sgd(param).step(None)
        sgd(param).step(closure=None)
    assert diary.entries == [("begins", 1), ("before", 1), ("after", 1)] * 3


def test_further_calls_of_the_closure_are_told_as_such() -> None:
    diary, param = Diary(), parameter()
    with diary.watching():
        Descent([param], calls=3).step(closing(param))
    assert [what for what, _ in diary.entries] == ["begins", "before", "again", "again", "after"]


def test_an_optimizer_that_never_calls_its_closure_is_told_of_all_the_same() -> None:
    diary, param = Diary(), parameter()
    param.grad = torch.ones(1)
    with diary.watching():
        Descent([param], calls=0).step(closing(param))
    assert [what for what, _ in diary.entries] == ["begins", "before", "after"]


def test_of_several_watchers_each_is_told_and_the_closure_runs_once() -> None:
    diary, param, calls = Diary(), parameter(), []
    with diary.watching("1 "), diary.watching("2 "):
        sgd(param).step(closing(param, calls))
    assert [what for what, _ in diary.entries] == [
        "1 begins", "2 begins", "1 before", "2 before", "1 after", "2 after",
    ]  # fmt: skip
    assert len(calls) == 1


def test_the_step_of_a_parent_class_is_no_step_of_its_own() -> None:
    diary, param = Diary(), parameter()
    sgd(param)
    param.grad = torch.ones(1)
    with diary.watching():
        Twice([param], lr=0.1).step()
        Twice([param], lr=0.1).step(closing(param))
    assert [what for what, _ in diary.entries] == ["begins", "before", "after"] * 2


def test_the_step_of_another_optimizer_inside_of_one_is() -> None:
    diary, param = Diary(), parameter()
    param.grad = torch.ones(1)
    with diary.watching():
        SharpnessAware([param]).step(closing(param))
    assert [what for what, _ in diary.entries] == [
        "begins", "before", "begins", "before", "after", "after",
    ]  # fmt: skip


def test_a_step_that_raises_is_over_for_the_next_one() -> None:
    diary, param = Diary(), parameter()
    optimizer = Twice([param], lr=0.1)

    def fail():
        raise ZeroDivisionError

    with diary.watching() as steps:
        with pytest.raises(ZeroDivisionError):
            optimizer.step(fail)
        optimizer.step(closing(param))
        assert not steps.at_work
    assert [what for what, _ in diary.entries] == ["begins", "begins", "before", "after"]


def test_a_wrapper_counts_as_the_optimizer_that_it_wraps() -> None:
    diary, param = Diary(), parameter()
    with diary.watching():
        Wrapped(sgd(param)).step(closing(param))
    assert diary.entries == [("begins", None), ("before", 1), ("after", 1)]


def test_no_hook_is_left() -> None:
    before = len(_global_optimizer_pre_hooks), len(_global_optimizer_post_hooks)
    with pytest.raises(ZeroDivisionError), Diary().watching():
        raise ZeroDivisionError
    assert (len(_global_optimizer_pre_hooks), len(_global_optimizer_post_hooks)) == before


# Steps that are withheld.


def withholding(*attempts):
    return StepWatch(Replay(frozenset(attempts), ()))


OPTIMIZERS = {
    "torch's": sgd,
    "a subclass of torch's": lambda param: Twice([param], lr=0.1),
    "LBFGS": lambda param: LBFGS([param], lr=0.1, max_iter=1),
    "a user's": lambda param: Descent([param]),
    "one that calls it twice": lambda param: Descent([param], calls=2),
    "wrapped": lambda param: Wrapped(sgd(param)),
}


@HOWEVER
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_withheld_step_runs_its_closure_once_returns_its_loss_and_moves_nothing(kind, by) -> None:
    param, calls = parameter(), []
    optimizer = OPTIMIZERS[kind](param)
    with withholding((0, 0)).installed():
        loss = BY[by](optimizer, closing(param, calls))
        assert (float(loss), param.item(), len(calls)) == (1, 1, 1)
        assert param.grad.item() == 1
        BY[by](optimizer, closing(param, calls))
    assert param.item() < 1


def test_one_that_needs_its_parameters_is_withheld_in_a_scalers_step() -> None:
    param, calls = parameter(), []
    with withholding((0, 0)).installed():
        loss = BY["disabled scaler"](Normed([param]), closing(param, calls))
    assert (float(loss), param.item(), len(calls)) == (1, 1, 1)


@pytest.mark.parametrize("closure", [False, True])
def test_a_subclass_of_torchs_counts_its_steps_as_a_scaler_does(closure) -> None:
    param = parameter()
    sgd(param)  # from here on SGD's own step has hooks
    optimizer, seen = Twice([param], lr=1.0), []
    with withholding((0, 1)).installed():
        for _ in range(3):
            param.grad = torch.ones(1)
            optimizer.step(*[closing(param)] * closure)
            seen.append(param.item())
    assert seen == [0, 0, -1]


def accumulating(arm, parts=2, by="position"):
    """Backward passes of which the last is in the closure, where there is no scaler."""
    model = nn.Linear(32, 10)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    xs, ys = torch.randn(parts, 16, 32), torch.randint(10, (parts, 16))

    def backward(index):
        with arm.autocast():
            loss = F.cross_entropy(model(xs[index]), ys[index]) / parts
        arm.scaler.scale(loss).backward()
        return loss

    def step():
        optimizer.zero_grad()
        for index in range(parts - 1):
            backward(index)
        if not arm.scaler.is_enabled():
            return BY[by](optimizer, lambda: backward(parts - 1))
        loss = backward(parts - 1)
        arm.scaler.step(optimizer)
        arm.scaler.update()
        return loss

    return step


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@HOWEVER
def test_gradients_that_are_completed_in_the_closure_are_compared_complete(by, dtype) -> None:
    report = measure(partial(accumulating, by=by), dtype=dtype)
    assert (report.verdict, codes(report)) == ("pass", [])


def skipping_at_first(arm, by="position", made=Adam):
    """The scaled arm skips until its scale fits; the other one hands its closure over."""
    scaler = GradScaler("cpu", init_scale=2.0**28, enabled=arm.enabled)
    model = nn.Linear(32, 1)
    optimizer = made(model.parameters())
    x = torch.randn(64, 32)
    y = x.mean(1, keepdim=True)

    def closure():
        optimizer.zero_grad()
        with arm.autocast():
            loss = F.mse_loss(model(x), y)
        scaler.scale(loss).backward()
        return loss

    def step():
        if not arm.enabled:
            return BY[by](optimizer, closure)
        loss = closure()
        scaler.step(optimizer)
        scaler.update()
        return loss

    return step


class Signed(Optimizer):
    """A user's, by the gradient's sign, over a list that it made before it calls the closure."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.003})

    @torch.no_grad()
    def step(self, closure=None):
        given = [param for group in self.param_groups for param in group["params"]]
        loss = torch.enable_grad()(closure)() if closure else None
        for param in given:
            param.sub_(param.grad.sign(), alpha=0.003)
        return loss


@HOWEVER
@pytest.mark.parametrize("made", [partial(Adam, lr=0.03), Signed])
def test_skipped_steps_are_withheld_where_the_other_arm_hands_a_closure_over(made, by) -> None:
    setup = partial(skipping_at_first, by=by, made=made)
    report = measure(setup, dtype="float16", steps=20, ignore={"AMP207": "the first scale is high"})
    assert report.amp.skipped_steps > 3
    assert report.loss_diff < 0.01
    assert [finding.code for finding in report.findings if finding.stands] == []


# What is seen of the numbers.


def trained_by(made, wrong=False):
    """Both arms hand the closure over, as Lightning does in bfloat16."""

    def setup(arm):
        model = nn.Linear(32, 10)
        optimizer = made(model.parameters())
        if wrong and arm.enabled:
            model.weight.register_hook(lambda grad: grad * torch.linspace(0, 3, 32))
        x, y = torch.randn(16, 32), torch.randint(10, (16,))

        def closure():
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        closure()  # for those that begin with what is there
        return lambda: optimizer.step(closure)

    return setup


KINDS = {
    "AdamW": partial(torch.optim.AdamW, lr=1e-3),
    "LBFGS": partial(LBFGS, lr=0.01, max_iter=4, history_size=2),
    "SAM": SharpnessAware,
    "a user's": Descent,
    "twice": partial(Descent, calls=2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_backward_pass_in_a_closure_is_found(kind) -> None:
    report = measure(trained_by(KINDS[kind], wrong=True), dtype="bfloat16", max_loss_diff=None)
    assert "AMP304" in codes(report)


@pytest.mark.parametrize("kind", KINDS)
def test_a_healthy_closure_is_clean_and_its_operators_are_the_steps_own(kind) -> None:
    report = measure(trained_by(KINDS[kind]), dtype="bfloat16", max_loss_diff=None)
    assert codes(report) == []
    assert report.coverage > 0.8  # LBFGS's own products are in float32


def test_what_a_closure_runs_is_no_update_however_often_it_is_called() -> None:
    def phases(calls):
        model, x = nn.Linear(4, 4), torch.ones(2, 4)
        optimizer, record = Descent(model.parameters(), calls), OpRecord()

        def closure():
            loss = model(x).sum()
            loss.backward()
            return loss

        with record.watching():
            optimizer.step(closure)
        return {
            (row.op, row.phase): row.count
            for row in record.operators().rows
            if row.op in ("aten::addmm", "aten::mm", "aten::sub_")
        }

    once = {
        ("aten::addmm", "forward"): 1,
        ("aten::mm", "backward"): 1,
        ("aten::sub_", "update"): 2,
    }
    assert phases(1) == once
    assert phases(2) == dict.fromkeys(once, 2)


def test_what_an_optimizer_does_around_its_closure_is_its_own_work() -> None:
    model, x = nn.Linear(4, 4), torch.ones(2, 4)
    optimizer, record = SharpnessAware(model.parameters()), OpRecord()

    def closure():
        model.zero_grad()
        loss = model(x).sum()
        loss.backward()
        return loss

    closure()
    with record.watching():
        optimizer.step(closure)
    moves = [row for row in record.operators().rows if row.op in ("aten::add_", "aten::sub_")]
    assert {row.phase for row in moves} == {"update"}
    assert sum(row.count for row in moves) == 6  # up, down, and the inner optimizer's


# Under the drills.


def stepping_regardless(made, others=0):
    """A closure scales and unscales; nobody looks for inf. `others` come first, and are healthy."""

    def setup(arm):
        model, scaler = nn.Linear(32, 10), arm.scaler
        optimizer = made(model.parameters())
        x, y = torch.randn(16, 32), torch.randint(10, (16,))
        healthy = [train(arm, sgd(p := parameter()), lambda p=p: p.sum()) for _ in range(others)]

        def closure():
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            if scaler.is_enabled():
                for param in model.parameters():
                    param.grad.div_(scaler.get_scale())
            return loss

        def step():
            for each in healthy:
                each()
            loss = optimizer.step(closure)
            if scaler.is_enabled():
                for group in optimizer.param_groups:  # an update wants to have seen some
                    scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"] = {
                        group["params"][0].device: torch.zeros(())
                    }
                scaler.update()
            return loss

        return step

    return setup


@pytest.mark.parametrize("kind", ["AdamW", "LBFGS", "a user's", "twice"])
def test_an_overflow_in_a_closure_is_seen_to_be_stepped_on(kind) -> None:
    seen = overflow(workbench(stepping_regardless(KINDS[kind]), torch.float16), 8)
    assert seen is not None
    assert all(each.changed.get(0) for each in seen.overflows)
    report = measure(stepping_regardless(KINDS[kind]), dtype="float16", max_loss_diff=None)
    assert "AMP206" in codes(report)


def test_an_overflow_in_a_further_call_of_a_closure_is_seen_too() -> None:
    setup = stepping_regardless(KINDS["LBFGS"], others=1)
    first, later, *_ = overflow(workbench(setup, torch.float16), 8).overflows
    assert (first.reached, first.changed) == ((0,), {})
    assert later.reached == (1,)  # it was in the middle of this optimizer's step
    assert later.changed[1]
