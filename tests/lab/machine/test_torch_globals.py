"""Whatever an arm sets globally is its own while it runs, and gone when the test is over."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy
import pytest
import torch
from torch.nn.modules import module as nn_module
from torch.optim import optimizer as optim_module
from torch.overrides import BaseTorchFunctionMode

from pytest_amp import Arm
from pytest_amp.lab.machine.global_state import remembered
from pytest_amp.lab.machine.torch_globals import _queues
from pytest_amp.lab.phases import timing
from tests.helpers.lab import SimulatedDevice, measure, workbench

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
    assert inside.isdisjoint({before, *outside})
    assert outside == {"ieee" if name == "fp32_precision" else before}  # as the recipe has it
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
    longest = max(runs, key=len)
    assert len(longest) >= 4
    assert all(len(run) >= 2 and run == longest[: len(run)] for run in runs)
    assert len(set(longest)) == len(longest)


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


class Waiting:
    """What an accelerator's module keeps of a seed until somebody uses the device."""

    def __init__(self) -> None:
        self.manual_seed_all_cb: Any = None
        self.call_order: list[Any] = []


class Accelerator:
    """As torch.cuda is before its first use: it seeds its generator with what was asked last."""

    def __init__(self) -> None:
        self._lazy_seed_tracker = Waiting()
        self.generator: random.Random | None = None

    def is_initialized(self) -> bool:
        return self.generator is not None

    def manual_seed_all(self, seed: int) -> None:
        def call() -> None:
            assert self.generator is not None
            self.generator.seed(seed)

        if self.is_initialized():
            call()
        else:
            self._lazy_seed_tracker.manual_seed_all_cb = (call, "a traceback")
            self._lazy_seed_tracker.call_order = [None, (call, "a traceback")]

    def draw(self) -> float:
        if self.generator is None:
            self.generator = random.Random(torch.Generator().initial_seed())
            for call in filter(None, self._lazy_seed_tracker.call_order):
                call[0]()
        return self.generator.random()

    def get_rng_state_all(self) -> Any:
        assert self.generator is not None
        return self.generator.getstate()

    def set_rng_state_all(self, state: Any) -> None:
        assert self.generator is not None
        self.generator.setstate(state)


@pytest.mark.parametrize("seeded", [False, True])
@pytest.mark.parametrize("used", ["before", "by the amp test", "after"])
def test_tests_behind_draw_the_numbers_on_a_device_that_they_drew_without(
    seeded: bool, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seed that a conftest asked for waits until a device is used, and so would ours."""

    def behind(with_an_amp_test: bool) -> float:
        device = Accelerator()
        monkeypatch.setattr(torch, "cuda", device)
        if seeded:
            device.manual_seed_all(7)
        if used == "before":
            device.draw()
        if with_an_amp_test:
            put_back = remembered()
            device.manual_seed_all(0)
            if used == "by the amp test":
                device.draw()
            put_back()
        return device.draw()

    assert behind(True) == behind(False)


def test_tests_behind_see_the_seed_that_waited_for_torch_cuda() -> None:
    tracker: Any = torch.cuda._lazy_seed_tracker
    before = dict(vars(tracker))
    put_back = remembered()
    torch.cuda.manual_seed_all(5)
    assert torch.cuda.is_initialized() or vars(tracker) != before
    put_back()
    assert vars(tracker) == before


def accelerate_module() -> ModuleType:
    """What Accelerate's objects share: whoever comes second finds the first one's precision."""
    module = ModuleType("accelerate.state")
    for name in ("PartialState", "AcceleratorState", "GradientState"):
        setattr(module, name, type(name, (), {"_shared_state": {}}))
    return module


def test_each_arm_has_accelerates_shared_state_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = accelerate_module()
    monkeypatch.setitem(sys.modules, "accelerate.state", module)
    shared = module.AcceleratorState._shared_state
    shared["of the session"] = 1

    def setup(arm: Arm) -> Callable[[], float]:
        assert set(shared) == {"of the session"}
        shared["mixed_precision"] = arm.mixed_precision

        def step() -> float:
            assert shared["mixed_precision"] == arm.mixed_precision
            return 1.0

        return step

    measure(setup, steps=2, static=False, max_time=0.05)
    assert shared == {"of the session": 1}


def test_accelerate_that_is_imported_by_an_arm_is_new_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate.state", None)  # is there again at the end
    del sys.modules["accelerate.state"]

    def setup(arm: Arm) -> Callable[[], float]:
        module: Any = sys.modules.setdefault("accelerate.state", accelerate_module())
        assert module.PartialState._shared_state == {}
        module.PartialState._shared_state["device"] = arm.device
        return lambda: 1.0

    measure(setup, steps=2)
    assert sys.modules["accelerate.state"].PartialState._shared_state == {}


def test_an_accelerator_is_made_in_each_arm_and_leaves_nothing() -> None:
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState, GradientState, PartialState

    def setup(arm: Arm) -> Callable[[], torch.Tensor]:
        accelerator = accelerate.Accelerator(mixed_precision=arm.mixed_precision, cpu=True)
        layer = torch.nn.Linear(8, 8)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        layer, optimizer = accelerator.prepare(layer, optimizer)
        x = torch.randn(4, 8)

        def step() -> torch.Tensor:
            optimizer.zero_grad()
            with accelerator.autocast():
                loss = (layer(x) - x).square().mean()
            accelerator.backward(loss)
            optimizer.step()
            return loss

        return step

    before = [dict(each._shared_state) for each in (AcceleratorState, PartialState, GradientState)]
    report = measure(setup, steps=4, dtype="bfloat16")
    assert (report.verdict, report.coverage) == ("pass", 1)
    after = [dict(each._shared_state) for each in (AcceleratorState, PartialState, GradientState)]
    assert after == before


def test_state_that_an_earlier_test_left_behind_is_explained() -> None:
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState

    def setup(arm: Arm) -> Callable[[], float]:
        accelerate.Accelerator(mixed_precision=arm.mixed_precision, cpu=True)
        return lambda: 1.0

    accelerate.Accelerator(mixed_precision="no", cpu=True)
    try:
        with pytest.raises(ValueError, match="already been initialized") as raised:
            measure(setup, steps=2, dtype="bfloat16")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert "an earlier test in this process made an Accelerator" in "".join(raised.value.__notes__)


def test_each_arm_has_the_graphs_of_its_compiled_code_for_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run of one arm's graphs would free what a run of the other's returned."""
    trees: Any = ModuleType("torch._inductor.cudagraph_trees")
    trees.local = containers = {}
    trees.get_obj = lambda kept, name: kept if name == "tree_manager_containers" else None
    freed = []
    trees.reset_cudagraph_trees = lambda: freed.append(dict(containers))
    monkeypatch.setitem(sys.modules, "torch._inductor.cudagraph_trees", trees)
    monkeypatch.setattr(torch._C, "_set_cached_tensors_enabled", lambda _: None)

    def setup(arm: Arm) -> Callable[[], float]:
        assert not {"fp32", "amp"} & set(containers)

        def step() -> float:
            containers[arm.name] = containers.get(arm.name, 0) + 1
            assert not ({"fp32", "amp"} - {arm.name}) & set(containers)
            return 1.0

        return step

    measure(setup, steps=2, static=False, max_time=0.05)
    assert containers == {}
    assert {name for each in freed for name in each} == {"fp32", "amp"}


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


class Watched(Queues):
    """And the rest of what an experiment asks of it."""

    def __init__(self) -> None:
        super().__init__(used=True)
        self.real = torch.cuda

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def init(self) -> None: ...

    def get_rng_state_all(self) -> list[Any]:
        return []

    def set_rng_state_all(self, _: list[Any]) -> None: ...


class WatchedDevice(SimulatedDevice):
    type = "cuda"

    @property
    def module(self) -> Any:
        return torch.cuda


def test_the_watch_for_waiting_is_in_force_where_we_read_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step that must not wait for the device is held to it; our own reads of it do wait."""
    cuda = Watched()
    monkeypatch.setattr(torch, "cuda", cuda)
    seen: dict[str, list[int]] = {"setup": [], "warm-up": [], "timing": [], "calibration": []}
    device = WatchedDevice()

    def setup(arm: Arm) -> Callable[[], float]:
        seen["setup"].append(cuda.mode)
        cuda.set_sync_debug_mode(2)

        def step() -> float:
            seen[str(bench.progress.phase)].append(cuda.mode)
            device.time_s += 0.03
            return 1.0

        return step

    bench = workbench(setup, device=device)
    plan = timing.Plan(3, lambda pairs: "enough" if len(pairs.ratios) >= 2 else None)
    assert len(timing.run(bench, plan).ratios) == 2
    assert seen["setup"] == [0, 0]
    assert seen["warm-up"] == [0] * 6
    assert seen["timing"] == [0, 2] * 4  # the first step of a block is not timed
    assert cuda.mode == 0
