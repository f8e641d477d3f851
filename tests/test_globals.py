"""Whatever an arm sets globally is its own while it runs, and gone when the test is over."""

from __future__ import annotations

import gc
import os
import random
import signal
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch.nn.modules import module as nn_module
from torch.optim import optimizer as optim_module
from torch.overrides import BaseTorchFunctionMode

from pytest_amp import Arm
from pytest_amp.run.globals import _queues
from tests.laboratory import measure

MATMUL = torch.backends.cuda.matmul
OPEN: list[torch.inference_mode] = []  # one that nobody holds is over


def handler(*_: object) -> None:
    pass


def leave_autocast_open() -> None:
    torch.autocast("cpu", torch.bfloat16).__enter__()


def identity(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def leave_inference_mode_open() -> None:
    OPEN.append(torch.inference_mode())
    OPEN[-1].__enter__()


def nesting() -> int:
    torch.autocast_increment_nesting()
    return int(torch.autocast_decrement_nesting())


# name -> (what an arm does, what shows it)
LEAKS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "default dtype": (lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype),
    "default device": (lambda: torch.set_default_device("meta"), torch.get_default_device),
    "a device region": (
        lambda: torch.device("meta").__enter__(),
        lambda: torch.empty(0).device,  # what older versions say of the default leaves regions out
    ),
    "function mode": (
        lambda: BaseTorchFunctionMode().__enter__(),
        torch._C._len_torch_function_stack,
    ),
    "matmul precision": (
        lambda: torch.set_float32_matmul_precision("medium"),
        torch.get_float32_matmul_precision,
    ),
    "tf32": (lambda: setattr(MATMUL, "allow_tf32", True), lambda: MATMUL.allow_tf32),
    "attention kernels": (
        lambda: torch.backends.cuda.enable_flash_sdp(False),
        torch.backends.cuda.flash_sdp_enabled,
    ),
    "cudnn.benchmark": (
        lambda: setattr(torch.backends.cudnn, "benchmark", True),
        lambda: torch.backends.cudnn.benchmark,
    ),
    "deterministic algorithms": (
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
    ),
    "grad mode": (lambda: torch._C._set_grad_enabled(False), torch.is_grad_enabled),
    "inference mode": (leave_inference_mode_open, torch.is_inference_mode_enabled),
    "anomaly mode": (lambda: torch.autograd.set_detect_anomaly(True), torch.is_anomaly_enabled),
    "threads": (lambda: torch.set_num_threads(1), torch.get_num_threads),
    "an autocast region": (leave_autocast_open, lambda: torch.is_autocast_enabled("cpu")),
    "autocast nesting": (leave_autocast_open, nesting),
    "autocast dtype": (
        lambda: torch.set_autocast_dtype("cpu", torch.float16),
        lambda: torch.get_autocast_dtype("cpu"),
    ),
    "autocast cache": (
        lambda: torch.set_autocast_cache_enabled(False),
        torch.is_autocast_cache_enabled,
    ),
    "environment": (
        lambda: os.environ.update(AMP_TEST_LEAK="1"),
        lambda: os.environ.get("AMP_TEST_LEAK"),
    ),
    "signal handler": (
        lambda: signal.signal(signal.SIGINT, handler),
        lambda: signal.getsignal(signal.SIGINT),
    ),
    "another signal": (
        lambda: signal.signal(signal.SIGTERM, handler),
        lambda: signal.getsignal(signal.SIGTERM),
    ),
    "garbage collection": (gc.disable, gc.isenabled),
    "kind of backward hooks": (
        lambda: nn_module.register_module_full_backward_hook(handler),
        lambda: nn_module._global_is_full_backward_hook,
    ),
    "module hooks": (
        lambda: nn_module.register_module_forward_hook(handler),
        lambda: len(nn_module._global_forward_hooks),
    ),
    "optimizer hooks": (
        lambda: optim_module.register_optimizer_step_pre_hook(handler),
        lambda: handler in optim_module._global_optimizer_pre_hooks.values(),
    ),
}

# What older versions of torch do not have.
if hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"):
    LEAKS["saved tensor hooks"] = (
        lambda: torch.autograd.graph.saved_tensors_hooks(identity, identity).__enter__(),
        lambda: torch._C._autograd._top_saved_tensors_default_hooks(True),
    )
if hasattr(MATMUL, "fp32_precision"):
    LEAKS["fp32_precision"] = (
        lambda: setattr(MATMUL, "fp32_precision", "tf32"),
        lambda: MATMUL.fp32_precision,
    )


@pytest.fixture(autouse=True)
def _two_threads() -> Any:
    """So that one thread is another number."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def leaking(leak: Callable[[], Any], arm_name: str, read: Callable[[], Any], seen: list[Any]):
    def setup(arm: Arm) -> Callable[[], float]:
        if arm.name == arm_name:
            leak()

        def step() -> float:
            seen.append((arm.name, read()))
            return 1.0

        return step

    return setup


@pytest.mark.parametrize("name", LEAKS)
@pytest.mark.parametrize("arm_name", ["fp32", "amp"])
def test_what_setup_sets_is_in_force_in_that_arm_only(name: str, arm_name: str) -> None:
    leak, read = LEAKS[name]
    before = read()
    seen: list[Any] = []
    measure(leaking(leak, arm_name, read, seen), steps=2, static=False, max_time=0.05)
    inside = {value for arm, value in seen if arm == arm_name}
    outside = {value for arm, value in seen if arm != arm_name}
    assert len(inside) == 1
    assert inside != {before}
    assert outside == {before}
    assert read() == before


@pytest.mark.parametrize("name", LEAKS)
def test_what_a_step_sets_is_gone_when_it_raised(name: str) -> None:
    leak, read = LEAKS[name]
    before = read()

    def setup(arm: Arm) -> Callable[[], float]:
        def step() -> float:
            leak()
            raise ValueError("in mid-step")

        return step

    with pytest.raises(ValueError, match="in mid-step"):
        measure(setup, steps=2)
    assert read() == before


@pytest.mark.parametrize("name", LEAKS)
def test_what_setup_sets_is_gone_when_it_raised(name: str) -> None:
    leak, read = LEAKS[name]
    before = read()

    def setup(arm: Arm) -> Callable[[], float]:
        leak()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(setup, steps=2)
    assert read() == before


def test_a_default_device_that_was_never_set_can_be_asked_for_after_an_arm_that_sets_it() -> None:
    """Some versions of torch ask whether there is a context at all, not whether it is None."""
    there = vars(torch._GLOBAL_DEVICE_CONTEXT)
    before = dict(there)
    there.clear()
    try:
        seen: list[Any] = []
        leak, read = LEAKS["default device"]
        measure(leaking(leak, "amp", read, seen), steps=2)
        assert there == {}
        assert {str(device) for arm, device in seen if arm == "fp32"} == {"cpu"}
    finally:
        there.update(before)


def drawn() -> tuple[float, float, float]:
    return random.random(), float(numpy.random.rand()), float(torch.rand(1))


def draws() -> Callable[[], float]:
    def step() -> float:
        drawn()
        return 1.0

    return step


def seed_all() -> None:
    random.seed(5)
    numpy.random.seed(5)
    torch.manual_seed(5)


def test_random_streams_go_on_as_if_the_test_had_not_been() -> None:
    seed_all()
    expected = [drawn() for _ in range(3)]
    seed_all()
    assert drawn() == expected[0]
    measure(lambda _: draws(), steps=3, static=False, max_time=0.05)
    assert [drawn() for _ in range(2)] == expected[1:]


def test_each_arm_has_streams_of_its_own_from_the_same_seed() -> None:
    seen: dict[str, list[Any]] = {"fp32": [], "amp": []}

    def setup(arm: Arm) -> Callable[[], float]:
        own: list[Any] = []
        seen[arm.name].append(own)

        def step() -> float:
            own.append(drawn())
            return 1.0

        return step

    measure(setup, steps=4, static=False, max_time=0.05)
    runs = [*seen["fp32"], *seen["amp"]]
    least = min(map(len, runs))
    assert least >= 3
    assert all(run[:least] == runs[0][:least] for run in runs)
    assert len(set(runs[0])) == len(runs[0])


def test_a_seed_of_its_own_gives_other_numbers() -> None:
    seen = []

    def setup(arm: Arm) -> Callable[[], float]:
        seen.append(drawn())
        return lambda: 1.0

    measure(setup, steps=2, seed=0)
    measure(setup, steps=2, seed=1)
    assert len(set(seen)) == 2


def test_autocast_left_open_by_one_arm_leaves_no_cached_weight_to_the_next() -> None:
    """A later arm that used a stale cast would compute with the former arm's weights."""
    losses = {}

    def setup(arm: Arm) -> Callable[[], torch.Tensor]:
        layer = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
        x = torch.ones(2, 4)
        if arm.enabled:
            torch.autocast("cpu", torch.bfloat16).__enter__()

        def step() -> torch.Tensor:
            optimizer.zero_grad()
            loss = layer(x).float().square().mean()
            loss.backward()
            optimizer.step()
            losses.setdefault(arm.name, []).append(float(loss.detach()))
            return loss

        return step

    measure(setup, steps=3)
    assert nesting() == 0
    assert losses["fp32"][0] != losses["fp32"][1]


class Queues:
    """Two devices, as torch.cuda tells of them."""

    def __init__(self, used: bool) -> None:
        self.used, self.device, self.mode = used, 0, 0
        self.streams = {0: "default 0", 1: "default 1"}

    def is_initialized(self) -> bool:
        return self.used

    def device_count(self) -> int:
        return 2

    def current_device(self) -> int:
        assert self.used
        return self.device

    def set_device(self, number: int) -> None:
        self.device = number

    def current_stream(self, number: int) -> str:
        assert self.used
        return self.streams[number]

    def set_stream(self, stream: str) -> None:
        self.device = int(stream[-1])
        self.streams[self.device] = stream

    def get_sync_debug_mode(self) -> int:
        assert self.used
        return self.mode

    def set_sync_debug_mode(self, mode: int) -> None:
        self.mode = mode


def test_devices_streams_and_the_watch_for_waiting_are_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queues = Queues(used=True)
    monkeypatch.setattr(torch, "cuda", queues)
    kept = list(_queues("cuda"))
    before = [each.read() for each in kept]
    queues.set_stream("side 1")
    queues.set_sync_debug_mode(2)
    assert (queues.device, queues.streams[1]) == (1, "side 1")
    for each, value in zip(kept, before, strict=True):
        each.write(value)
    assert (queues.device, queues.mode) == (0, 0)
    assert queues.streams == {0: "default 0", 1: "default 1"}


def test_a_device_that_nobody_has_used_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    queues = Queues(used=False)
    monkeypatch.setattr(torch, "cuda", queues)
    kept = list(_queues("cuda"))
    before = [each.read() for each in kept]
    assert set(before) == {None}
    queues.used, queues.device = True, 1
    for each, value in zip(kept, before, strict=True):
        each.write(value)
    assert queues.device == 1
