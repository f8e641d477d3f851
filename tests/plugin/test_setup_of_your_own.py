"""`setup(arm)`: what the arm offers, and the steps that users drive themselves."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.amp import GradScaler
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

from pytest_amp import AmpReport, Arm
from tests.helpers.lab import CPU, codes, measure, train
from tests.helpers.project import gate
from tests.helpers.project import measure as measure_project

BOTH = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def batch(size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(size, 8), torch.randint(4, (size,))


def plain(arm: Arm) -> Callable[[], Any]:
    """The healthiest of steps."""
    model, (x, y) = net(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return train(arm, optimizer, lambda: F.cross_entropy(model(x), y))


# The arm.

SPELLINGS = {
    # dtype and arm -> dtype, scaler enabled, mixed_precision, lightning_precision
    ("float16", "fp32"): (torch.float32, False, "no", "32-true"),
    ("float16", "amp"): (torch.float16, True, "fp16", "16-mixed"),
    ("bfloat16", "fp32"): (torch.float32, False, "no", "32-true"),
    ("bfloat16", "amp"): (torch.bfloat16, False, "bf16", "bf16-mixed"),
}


@pytest.mark.parametrize(("dtype", "name"), SPELLINGS)
def test_the_arm_says_which_it_is_in_each_frameworks_words(dtype: str, name: str) -> None:
    arms: dict[str, Arm] = {}

    def setup(arm: Arm) -> Callable[[], Any]:
        arms[arm.name] = arm
        return plain(arm)

    measure(setup, dtype=dtype, steps=2)
    assert set(arms) == {"fp32", "amp"}
    arm = arms[name]
    assert arm.enabled == (name == "amp")
    assert arm.device == CPU
    assert isinstance(arm.scaler, GradScaler)
    said = (arm.dtype, arm.scaler.is_enabled(), arm.mixed_precision, arm.lightning_precision)
    assert said == SPELLINGS[dtype, name]


@BOTH
def test_autocast_is_torchs_own_in_the_amp_arm_and_nothing_in_the_fp32_arm(dtype: str) -> None:
    seen: dict[str, list[Any]] = {"fp32": [], "amp": []}

    def setup(arm: Arm) -> Callable[[], Any]:
        step = plain(arm)

        def look() -> Any:
            for _ in range(2):  # as often as one likes
                with arm.autocast():
                    enabled = torch.is_autocast_enabled("cpu")
                    seen[arm.name].append((enabled, (torch.ones(2, 2) @ torch.ones(2, 2)).dtype))
                assert not torch.is_autocast_enabled("cpu")
            return step()

        return look

    measure(setup, dtype=dtype, steps=2)
    # The parity run's; later, with a scaler, a drill runs the amp arm in float32.
    assert {name: set(each[:4]) for name, each in seen.items()} == {
        "fp32": {(False, torch.float32)},
        "amp": {(True, getattr(torch, dtype))},
    }


# on_teardown.


def test_what_was_set_up_last_is_torn_down_first_in_every_build() -> None:
    events: list[str] = []

    def setup(arm: Arm) -> Callable[[], Any]:
        events.append("setup")
        torch.set_default_dtype(torch.float64)
        arm.on_teardown(lambda: events.append("first"))
        arm.on_teardown(lambda: events.append(str(torch.get_default_dtype())))
        return lambda: 1.0

    measure(setup, steps=2)
    assert events[:3] == ["setup", "torch.float64", "first"]  # in the arm's own globals
    assert len(events) >= 9
    assert events == events[:3] * (len(events) // 3)


class Worker:
    """Something that has to be stopped, and may not want to."""

    def __init__(self, events: list[str], name: str, error: Exception | None = None) -> None:
        self.events, self.name, self.error = events, name, error

    def stop(self) -> None:
        self.events.append(self.name)
        if self.error is not None:
            raise self.error


def failing(events: list[str], where: str, error: BaseException, *workers: Worker):
    def setup(arm: Arm) -> Callable[[], Any]:
        for worker in workers:
            arm.on_teardown(worker.stop)
        if where == "setup":
            raise error

        def step() -> float:
            if where == "step":
                raise error
            return 1.0

        return step

    return setup


def builds_of(kind: type[BaseException]) -> int:
    """How many arms are built: after an exception, the other arm is asked if it raises too."""
    return 2 if issubclass(kind, Exception) else 1


@pytest.mark.parametrize("where", ["setup", "step"])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_it_is_torn_down_when_the_arm_raises(where: str, kind: type[BaseException]) -> None:
    events: list[str] = []
    workers = [Worker(events, "first"), Worker(events, "last")]
    with pytest.raises(kind, match="boom"):
        measure(failing(events, where, kind("boom"), *workers))
    assert events == ["last", "first"] * builds_of(kind)


@pytest.mark.parametrize("where", ["setup", "step"])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_teardown_that_raises_too_does_not_hide_why(
    where: str, kind: type[BaseException]
) -> None:
    events: list[str] = []
    stuck = Worker(events, "stuck", OSError("will not stop"))
    with pytest.raises(kind, match="boom") as caught:
        measure(failing(events, where, kind("boom"), Worker(events, "first"), stuck))
    assert events == ["stuck", "first"] * builds_of(kind)
    notes = getattr(caught.value, "__notes__", [])
    assert notes[-1] == "pytest-amp: and raised in on_teardown: OSError: will not stop"


def test_all_teardowns_are_called_though_some_raise_and_the_test_fails() -> None:
    events: list[str] = []
    workers = [
        Worker(events, "a"),
        Worker(events, "b", OSError("of b")),
        Worker(events, "c"),
        Worker(events, "d", ValueError("of d")),
    ]
    with pytest.raises(ValueError, match="of d") as caught:
        measure(failing(events, "nowhere", ValueError(), *workers))
    assert events == ["d", "c", "b", "a"] * builds_of(ValueError)
    notes = getattr(caught.value, "__notes__", [])
    assert notes == ["pytest-amp: and raised in on_teardown: OSError: of b"]


# What a step may return.

RETURNS: dict[str, Callable[[torch.Tensor], Any]] = {
    "float": lambda loss: loss.item(),
    "numpy": lambda loss: numpy.float32(loss.item()),
    "tensor": lambda loss: loss,
    "detached": lambda loss: loss.detach(),
    "one element": lambda loss: loss.reshape(1, 1),
    "double": lambda loss: loss.double(),
    "dict": lambda loss: {"loss": loss},
}


@pytest.mark.parametrize("kind", RETURNS)
def test_the_loss_comes_back_on_the_report_however_it_is_returned(kind: str) -> None:
    returned: dict[str, list[list[float]]] = {"fp32": [], "amp": []}

    def setup(arm: Arm) -> Callable[[], Any]:
        step = plain(arm)
        returned[arm.name].append([])

        def one() -> Any:
            loss = step()
            returned[arm.name][-1].append(loss.item())
            return RETURNS[kind](loss)

        return one

    report = measure(setup, steps=4)
    assert report.verdict == "pass"
    assert list(report.fp32.losses) == returned["fp32"][0][:4]
    assert list(report.amp.losses) == returned["amp"][0][:4]
    assert report.fp32.losses_by_key == {"loss": report.fp32.losses}
    assert len(set(report.fp32.losses)) == 4


def test_a_tensor_that_the_step_goes_on_using_is_kept_as_it_was() -> None:
    def setup(arm: Arm) -> Callable[[], Any]:
        step, running = plain(arm), torch.zeros(())

        def one() -> torch.Tensor:
            return running.add_(step().detach())

        return one

    losses = measure(setup, steps=4).fp32.losses
    assert all(later > earlier for earlier, later in itertools.pairwise(losses))


def apart(key: str) -> Callable[[Arm], Callable[[], Any]]:
    """A GAN's two losses, of which one is another under amp."""

    def setup(arm: Arm) -> Callable[[], Any]:
        step = plain(arm)

        def one() -> dict[str, Any]:
            loss = step().detach()
            losses = {"generator": loss, "discriminator": loss * 3}
            if arm.enabled:
                losses[key] = losses[key] * 1.5
            return losses

        return one

    return setup


@pytest.mark.parametrize("key", ["generator", "discriminator"])
def test_parity_of_several_losses_is_judged_one_by_one(key: str) -> None:
    report = measure(apart(key))
    assert report.gate("loss_diff").verdict == "fail"
    assert repr(key) in report.gate("loss_diff").reason
    assert list(report.amp.losses_by_key) == ["generator", "discriminator"]
    assert report.amp.losses == report.amp.losses_by_key["generator"]
    assert report.amp.losses_by_key != report.fp32.losses_by_key


# Training steps as they are written.


def make_scaler(arm: Arm, own: bool, init_scale: float = 2.0**16) -> GradScaler:
    """The arm's, or one that the user makes."""
    if not own:
        return arm.scaler
    return GradScaler("cpu", enabled=arm.mixed_precision == "fp16", init_scale=init_scale)


def everything_at_once(own_scaler: bool) -> Callable[[Arm], Callable[[], Any]]:
    """A shuffling loader, accumulation, clipping, a schedule: the loop of many a repository."""

    def setup(arm: Arm) -> Callable[[], Any]:
        model = net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        scheduler = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4))
        loader = DataLoader(TensorDataset(*batch(32)), batch_size=8, shuffle=True)
        data = itertools.chain.from_iterable(itertools.repeat(loader))
        scaler = make_scaler(arm, own_scaler)

        def step() -> float:
            total = 0.0
            for _ in range(2):
                x, y = next(data)
                with arm.autocast():
                    loss = F.cross_entropy(model(x), y) / 2
                scaler.scale(loss).backward()
                total += loss.item()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            before = scaler.get_scale()
            scaler.update()
            optimizer.zero_grad()
            if scaler.get_scale() >= before:
                scheduler.step()
            return total

        return step

    return setup


def accumulating_over_calls(own_scaler: bool) -> Callable[[Arm], Callable[[], Any]]:
    """A call is a microbatch, and every third moves the weights."""

    def setup(arm: Arm) -> Callable[[], Any]:
        model, (x, y) = net(), batch()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        scaler, calls = make_scaler(arm, own_scaler), itertools.count(1)

        def step() -> torch.Tensor:
            with arm.autocast():
                loss = F.cross_entropy(model(x), y)
            scaler.scale(loss / 3).backward()
            if next(calls) % 3 == 0:
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
            return loss.detach()

        return step

    return setup


def gan(own_scaler: bool) -> Callable[[Arm], Callable[[], Any]]:
    """Two models, two optimizers, one scaler, updated once per step."""

    def setup(arm: Arm) -> Callable[[], Any]:
        generator = net()
        discriminator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
        optimizers = [
            torch.optim.Adam(model.parameters(), lr=1e-3) for model in (generator, discriminator)
        ]
        scaler, (noise, _), real = make_scaler(arm, own_scaler), batch(), torch.randn(16, 4)
        ones, zeros = torch.ones(16, 1), torch.zeros(16, 1)
        criterion = nn.BCEWithLogitsLoss()

        def step() -> dict[str, torch.Tensor]:
            for optimizer in optimizers:
                optimizer.zero_grad()
            with arm.autocast():
                fake = generator(noise)
                told = discriminator(real), discriminator(fake.detach())
                loss_d = criterion(told[0], ones) + criterion(told[1], zeros)
            scaler.scale(loss_d).backward()
            scaler.step(optimizers[1])
            optimizers[1].zero_grad()
            with arm.autocast():
                loss_g = criterion(discriminator(fake), ones)
            scaler.scale(loss_g).backward()
            scaler.step(optimizers[0])
            scaler.update()
            return {"generator": loss_g, "discriminator": loss_d}

        return step

    return setup


STEPS = {each.__name__: each for each in (everything_at_once, accumulating_over_calls, gan)}


@BOTH
@pytest.mark.parametrize("own_scaler", [False, True], ids=["arm's scaler", "own scaler"])
@pytest.mark.parametrize("name", STEPS)
def test_a_healthy_step_passes_and_no_rule_speaks(name: str, own_scaler: bool, dtype: str) -> None:
    report = measure(STEPS[name](own_scaler), dtype=dtype, steps=9, loss_atol=0, warmup=0)
    assert [each for each in codes(report) if each != "AMP401"] == []  # which is about the machine
    assert report.verdict == "pass"
    updates = 3 if name == "accumulating_over_calls" else 9
    assert len(report.amp.scales) == (updates if dtype == "float16" else 0)
    assert report.fp32.scales == ()
    assert all(series[0] != series[-1] for series in report.amp.losses_by_key.values())


def test_an_optimizer_that_wants_a_closure_is_the_users_to_call() -> None:
    def setup(arm: Arm) -> Callable[[], Any]:
        model, (x, y) = net(), batch()
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        return lambda: optimizer.step(closure)

    # Parity is not asked for: bfloat16 gradients are too coarse for LBFGS's curvature.
    report = measure(setup, dtype="bfloat16", steps=4, max_loss_diff=None)
    assert report.verdict == "pass"
    for run in (report.fp32, report.amp):
        assert all(later < earlier for earlier, later in itertools.pairwise(run.losses))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_trains_as_it_does_uncompiled(backend: str) -> None:
    torch.compiler.reset()

    def setup(arm: Arm, compiled: bool = True) -> Callable[[], Any]:
        model, (x, y) = net(), batch()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        forward = torch.compile(model, backend=backend) if compiled else model
        return train(arm, optimizer, lambda: F.cross_entropy(forward(x), y))

    compiled = measure(setup, dtype="bfloat16", steps=4)
    as_written = measure(lambda arm: setup(arm, compiled=False), dtype="bfloat16", steps=4)
    assert compiled.verdict == "pass"
    assert compiled.fp32.losses == pytest.approx(as_written.fp32.losses)
    assert compiled.amp.losses == pytest.approx(as_written.amp.losses)
    torch.compiler.reset()


# float16 whose scale is at first so high that steps are skipped.

SKIPPING = 2.0**26


def skipping(arm: Arm) -> Callable[[], Any]:
    model, (x, y) = net(), batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = make_scaler(arm, own=True, init_scale=SKIPPING)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        with arm.autocast():
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    return step


def test_skipped_steps_are_counted_and_are_no_divergence() -> None:
    report = measure(skipping, dtype="float16", steps=16, loss_atol=0)
    skipped = report.amp.skipped_steps
    assert 3 <= skipped <= 12
    assert report.amp.scales[:skipped] == tuple(SKIPPING / 2**n for n in range(1, skipped + 1))
    assert report.gate("loss_diff").verdict == "pass"
    # fp32 left out the same steps: its loss stood still, and then went on
    assert len(set(report.fp32.losses[: skipped + 1])) == 1
    assert report.fp32.losses[-1] < 0.9 * report.fp32.losses[0]


def test_a_gans_optimizers_are_held_back_one_by_one() -> None:
    """Only the discriminator's gradients overflow, and only its steps are left out."""
    weights: dict[str, list[Any]] = {"fp32": [], "amp": []}

    def setup(arm: Arm) -> Callable[[], Any]:
        calm, wild = nn.Linear(8, 1), nn.Linear(8, 1)
        optimizers = [torch.optim.SGD(model.parameters(), lr=1e-3) for model in (calm, wild)]
        scaler, (x, _) = make_scaler(arm, own=True, init_scale=2.0**14), batch()

        def step() -> dict[str, torch.Tensor]:
            weights[arm.name].append((calm.weight.norm().item(), wild.weight.norm().item()))
            for optimizer in optimizers:
                optimizer.zero_grad()
            with arm.autocast():
                losses = {"calm": calm(x).square().mean(), "wild": wild(x).mean() * 100}
            for loss in losses.values():
                scaler.scale(loss).backward()
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
            return losses

        return step

    report = measure(setup, dtype="float16", steps=12)
    skipped = report.amp.skipped_steps
    assert 2 <= skipped <= 8
    for name in ("amp", "fp32"):
        calm, wild = zip(*weights[name][: skipped + 2], strict=True)
        assert len(set(calm)) == skipped + 2, name
        assert len(set(wild)) == 2, name
    assert report.gate("loss_diff").verdict == "pass"


# As tests in a project.

IN_A_PROJECT = """
import json
import pytest, torch
import torch.nn.functional as F
from pytest_amp import AmpRegression, AmpReport

def setup(arm):
    model = torch.nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=arm.enabled, init_scale=2.0**26)
    inputs, targets = torch.ones(4, 8), torch.arange(4)
    def step():
        optimizer.zero_grad()
        with arm.autocast():
            loss = F.cross_entropy(model(inputs), targets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss
    return step

@pytest.mark.amp(dtype="float16", steps=16)
class TestSkips:
    @pytest.mark.amp(max_skipped_steps=16)
    def test_few_enough(self, amp_benchmark):
        result = amp_benchmark(setup)
        assert result.amp.losses[-1] < result.amp.losses[0]
        assert result.amp.losses == result.amp.losses_by_key["loss"]
        assert len(result.fp32.losses) == 16

    @pytest.mark.amp(max_skipped_steps=1)
    def test_too_many(self, amp_benchmark):
        amp_benchmark(setup)

    @pytest.mark.amp(max_skipped_steps=1)
    def test_checked_later(self, amp_benchmark):
        result = amp_benchmark(setup, check=False)
        assert AmpReport.from_dict(json.loads(json.dumps(result.to_dict()))) == result
        with pytest.raises(AmpRegression) as caught:
            result.check()
        assert caught.value.report is result
        assert "skipped_steps" in str(caught.value)
"""


def test_skipped_steps_are_gated_and_the_report_is_the_users(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=IN_A_PROJECT)
    result, reports = measure_project(project, quick=("--amp-static",))
    result.assert_outcomes(passed=2, failed=1)
    counts = [report["arms"]["amp"]["skipped_steps"] for report in reports.values()]
    assert len(set(counts)) == 1
    verdicts = [gate(report, "skipped_steps")["verdict"] for report in reports.values()]
    assert verdicts == ["pass", "fail", "fail"]
    failed = gate(reports["TestSkips::test_too_many"], "skipped_steps")
    assert (failed["value"], failed["threshold"]) == (counts[0], 1)


def test_a_real_report_comes_back_from_its_json() -> None:
    for setup, dtype in ((apart("generator"), "bfloat16"), (skipping, "float16")):
        report = measure(setup, dtype=dtype, static=False, max_time=0.2)
        assert AmpReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
