"""A loop that owns the control is driven from outside, in one thread, and leaves nothing behind."""

from __future__ import annotations

import contextvars
import signal
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_amp.errors import AmpError
from pytest_amp.lab import loop as loops
from pytest_amp.lab.loop import Loop
from tests.helpers.lab import codes, measure, train

pytest.importorskip("greenlet")


class Trainer:
    """A training loop as frameworks have them: one call trains, and callbacks are told."""

    def __init__(self, arm, broken=None) -> None:
        self.model = nn.Linear(16, 4)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.x, self.y = torch.randn(8, 16), torch.arange(8) % 4
        self.step = train(arm, self.optimizer, self.loss)

    def loss(self):
        return F.cross_entropy(self.model(self.x), self.y)

    def fit(self, on_step, steps=10**9):
        for _ in range(steps):
            on_step(self.step())


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def steps_of(run, count=2):
    step = Loop(run)
    try:
        return [step() for _ in range(count)]
    finally:
        step.close()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_an_experiment_is_the_same_as_with_the_step_itself(dtype) -> None:
    def plain(arm):
        return Trainer(arm).step

    def driven(arm):
        return arm.loop(Trainer(arm).fit)

    ours, theirs = measure(driven, dtype=dtype), measure(plain, dtype=dtype)
    assert ours.verdict == theirs.verdict == "pass"
    assert ours.amp.losses == theirs.amp.losses
    assert ours.fp32.losses == theirs.fp32.losses
    assert (ours.coverage, codes(ours)) == (theirs.coverage, [])
    assert ours.amp.peak_bytes == pytest.approx(theirs.amp.peak_bytes, rel=0.05)
    assert ours.amp.scales == theirs.amp.scales


def test_the_scaler_of_a_loop_is_audited() -> None:
    def setup(arm):
        trainer = Trainer(arm)

        def step():
            trainer.optimizer.zero_grad()
            with arm.autocast():
                loss = trainer.loss()
            arm.scaler.scale(loss).backward()
            nn.utils.clip_grad_norm_(trainer.model.parameters(), 0.1)  # while they are scaled
            arm.scaler.step(trainer.optimizer)
            arm.scaler.update()
            return loss

        trainer.step = step
        return arm.loop(trainer.fit)

    report = measure(setup, dtype="float16")
    assert "AMP203" in codes(report)


def test_it_stops_at_each_tick_and_goes_on_where_it_stopped() -> None:
    told = []

    def run(tick):
        for number in range(10):
            told.append(number)
            tick(number / 2)

    assert steps_of(run, 3) == [0.0, 0.5, 1.0]
    assert told == [0, 1, 2]


def test_it_runs_in_the_thread_that_calls_it() -> None:
    threads = set()

    def run(tick):
        while True:
            threads.add(threading.get_ident())
            tick(0.0)

    steps_of(run)
    assert threads == {threading.get_ident()}


def test_a_dispatch_mode_around_a_step_sees_it() -> None:
    def run(tick):
        while True:
            tick(torch.ones(2).add(1).sum())

    step, seen = Loop(run), Seen()
    step()
    with seen:
        step()
    assert "add.Tensor" in seen.names
    step.close()


def test_modes_of_the_loop_s_own_stay_its_own() -> None:
    own, ours = Seen(), Seen()

    def run(tick):
        with own:
            while True:
                torch.ones(1).mul(2)
                tick(0.0)

    step = Loop(run)
    step()
    torch.ones(1).div(2)
    with ours:
        step()
    step()
    step.close()
    assert own.names.count("mul.Tensor") == 3
    assert "div.Tensor" not in own.names
    assert ours.names.count("mul.Tensor") == 1
    assert torch._C._len_torch_dispatch_stack() == 0


@pytest.mark.parametrize("nested", [False, True])
def test_a_region_of_the_loop_s_own_ends_at_the_tick_and_goes_on_behind_it(nested) -> None:
    inside, outside = [], []

    def run(tick):
        with torch.autocast("cpu", torch.bfloat16):
            while True:
                inside.append(torch.get_autocast_dtype("cpu") if in_force() else None)
                tick(0.0)

    def in_force():
        return torch.is_autocast_enabled("cpu")

    step = Loop(run)
    for _ in range(2):
        with torch.autocast("cpu", torch.float16, enabled=nested):
            step()
            outside.append((in_force(), torch.get_autocast_dtype("cpu")))
    step.close()
    assert inside == [torch.bfloat16] * 2
    assert {each for each, _ in outside} == {nested}
    assert not nested or {dtype for _, dtype in outside} == {torch.float16}
    assert not in_force()
    assert loops._nesting() == 0


def test_a_region_around_a_step_is_in_force_inside() -> None:
    seen = []

    def run(tick):
        while True:
            seen.append(torch.is_autocast_enabled("cpu"))
            tick(0.0)

    step = Loop(run)
    step()
    with torch.autocast("cpu", torch.bfloat16):
        step()
    step()
    step.close()
    assert seen == [False, True, False]


def test_grad_mode_and_context_variables_are_kept_apart() -> None:
    variable, seen = contextvars.ContextVar("variable", default="unset"), []
    variable.set("ours")

    def run(tick):
        seen.append(variable.get())
        variable.set("the loop's")
        with torch.no_grad():
            while True:
                seen.append((variable.get(), torch.is_grad_enabled()))
                tick(0.0)

    step = Loop(run)
    step()
    assert (variable.get(), torch.is_grad_enabled()) == ("ours", True)
    step()
    step.close()
    assert seen == ["ours", *[("the loop's", False)] * 2]
    assert torch.is_grad_enabled()


def test_signal_handlers_can_be_set_and_interrupts_reach_the_loop() -> None:
    told = []

    def run(tick):
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            tick(0.0)
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            told.append("interrupted")
            raise
        finally:
            signal.signal(signal.SIGTERM, before)

    before = signal.getsignal(signal.SIGTERM)
    step = Loop(run)
    step()
    with pytest.raises(KeyboardInterrupt):
        step()
    step.close()
    assert told == ["interrupted"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_the_loop_raises_has_its_lines() -> None:
    def run(tick):
        tick(0.0)
        raise ValueError("no such batch")

    step = Loop(run)
    step()
    with pytest.raises(ValueError, match="no such batch") as caught:
        step()
    step.close()
    assert caught.traceback[-1].name == "run"


def test_its_finally_blocks_run_when_the_arm_is_done_with() -> None:
    ended = []

    def setup(arm):
        def fit(tick):
            try:
                Trainer(arm).fit(tick)
            finally:
                ended.append(arm.name)

        return arm.loop(fit)

    report = measure(setup)
    assert report.verdict == "pass"
    assert ended.count("amp") == 2
    assert ended.count("fp32") == 3


def test_a_loop_that_was_never_begun_needs_no_end() -> None:
    Loop(lambda tick: tick(0.0)).close()


def test_what_a_loop_swallows_ends_it_in_the_end() -> None:
    def stubborn(tick, patience):
        for _ in range(patience):
            try:
                tick(0.0)
            except BaseException:  # noqa: BLE001 - as trainers do
                continue

    step = Loop(lambda tick: stubborn(tick, 20))
    step()
    step.close()
    step = Loop(lambda tick: stubborn(tick, 10**6))
    step()
    with pytest.raises(AmpError, match="goes on although tick\\(\\) raised LoopEnded 100 times"):
        step.close()


def test_an_exit_that_a_trainer_makes_of_the_end_is_no_error() -> None:
    def run(tick):
        try:
            tick(0.0)
        except BaseException:  # noqa: BLE001 - as Lightning does
            sys.exit(1)

    steps_of(run, 1)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (2, r"the training loop ended after step 2: the experiment may ask for many more"),
        (0, r"run\(tick\) returned without a single tick\(loss\): call it after every"),
    ],
)
def test_a_loop_that_ends_by_itself(steps, said) -> None:
    step = Loop(lambda tick: [tick(0.0) for _ in range(steps)])
    for _ in range(steps):
        step()
    for _ in range(2):  # it says so again
        with pytest.raises(AmpError, match=said):
            step()
    step.close()


def test_a_tick_from_another_thread() -> None:
    errors = []

    def run(tick):
        def told():
            try:
                tick(0.0)
            except AmpError as error:
                errors.append(str(error))

        thread = threading.Thread(target=told)
        thread.start()
        thread.join()
        tick(1.0)

    assert steps_of(run, 1) == [1.0]
    assert "from elsewhere than the loop, such as a thread" in errors[0]


def test_a_tick_inside_a_backward_pass() -> None:
    def run(tick):
        x = torch.ones(1, requires_grad=True)
        x.register_hook(lambda _: tick(0.0))
        x.sum().backward()

    with pytest.raises(AmpError, match=r"inside a backward pass: call it behind optimizer\.step"):
        steps_of(run, 1)
