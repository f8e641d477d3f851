"""Which device is chosen, what it answers to, and what it is able to do."""

from __future__ import annotations

import platform
from types import SimpleNamespace

import pytest
import torch

from pytest_amp.errors import AmpError
from pytest_amp.lab.machine import device
from pytest_amp.lab.machine.device import Device, choose, world_size
from pytest_amp.settings.thresholds import DeviceNames

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch):
    """Say how many devices of each kind there are; this process is nobody's worker or rank."""
    for name in ("LOCAL_RANK", "PYTEST_XDIST_WORKER", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)

    def has(**counts):
        monkeypatch.setattr(
            device, "how_many", lambda kind: 1 if kind == "cpu" else counts.get(kind, 0)
        )

    return has


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({}, "cpu"),
        ({"mps": 1}, "mps"),
        ({"mps": 1, "xpu": 1}, "xpu:0"),
        ({"mps": 1, "xpu": 1, "cuda": 2}, "cuda:0"),
    ],
)
def test_auto_prefers_cuda_then_xpu_then_mps_then_the_cpu(machine, counts, expected) -> None:
    machine(**counts)
    assert str(choose("auto")) == expected


@pytest.mark.parametrize("setting", ["cpu", "cuda", "cuda:1", "xpu"])
def test_what_is_named_is_taken(machine, setting) -> None:
    machine(cuda=2, xpu=1)
    assert str(choose(setting)).startswith(setting)


def test_a_device_that_is_not_there_is_an_error_that_says_what_is(machine) -> None:
    machine(cuda=2)
    with pytest.raises(AmpError) as caught:
        choose("cuda:7")
    assert str(caught.value) == (
        "the device 'cuda:7' is not there: this machine has cuda (device 0 to 1), cpu. "
        "Choose another with --amp-device, or auto; where a marker names it, with "
        "--amp-override device=..."
    )
    machine()
    with pytest.raises(AmpError, match="this machine has cpu"):
        choose("cuda:7")
    with pytest.raises(AmpError, match="'mps' is not there"):
        choose("mps")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "cuda:0"),
        ({"LOCAL_RANK": "1"}, "cuda:1"),
        ({"PYTEST_XDIST_WORKER": "gw2"}, "cuda:2"),
        ({"PYTEST_XDIST_WORKER": "gw5"}, "cuda:2"),  # more workers than devices: they share
        ({"PYTEST_XDIST_WORKER": "master"}, "cuda:0"),
        ({"LOCAL_RANK": "1", "PYTEST_XDIST_WORKER": "gw2"}, "cuda:1"),
    ],
)
def test_each_rank_and_each_worker_has_its_own_device(
    machine, monkeypatch, environment, expected
) -> None:
    machine(cuda=3)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(choose("auto")) == str(choose("cuda")) == str(device.cuda()) == expected


def test_a_device_given_by_number_is_the_same_for_all_workers(machine, monkeypatch) -> None:
    machine(cuda=3)
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw2")
    assert str(choose("cuda:0")) == "cuda:0"


def test_without_cuda_there_is_no_cuda_device(machine) -> None:
    machine()
    assert device.cuda() is None


# What it answers to.


def test_the_cpu_answers_to_its_model_and_its_type() -> None:
    names = Device(CPU).names()
    assert names == DeviceNames(Device(CPU).name(), None, "cpu")
    assert names.name.strip()


def test_a_cuda_device_answers_to_its_name_its_architecture_and_its_type(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    gpu = Device(torch.device("cuda", 0))
    monkeypatch.setattr(torch.version, "hip", None)
    assert gpu.names() == DeviceNames("NVIDIA H100 80GB HBM3", "sm90", "cuda")
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert gpu.names() == DeviceNames("NVIDIA H100 80GB HBM3", None, "rocm")


def test_the_lock_is_the_gpus_own_whatever_number_it_has_here(monkeypatch) -> None:
    visible = ["GPU-1a2b", "GPU-3c4d"]
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda each: SimpleNamespace(uuid=visible[each.index])
    )
    first, second = (Device(torch.device("cuda", i)).lock_name() for i in (0, 1))
    assert first == "GPU-1a2b"
    assert first != second
    visible.reverse()
    assert Device(torch.device("cuda", 1)).lock_name() == first


def test_the_lock_of_a_device_without_a_number_of_its_own_has_its_name(monkeypatch) -> None:
    assert Device(CPU).lock_name() == "cpu"
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace())
    assert Device(torch.device("cuda", 1)).lock_name() == "cuda-1"


def test_the_generators_of_all_devices_of_a_kind_are_kept(monkeypatch) -> None:
    states, put_back = [torch.tensor([1]), torch.tensor([2])], []
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: list(states))
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", put_back.extend)
    gpu = Device(torch.device("cuda", 0))
    kept = gpu.rng_state()
    states[1] = torch.tensor([9])
    gpu.set_rng_state(kept)
    assert [int(state) for state in put_back] == [1, 2]


def test_a_kind_with_one_device_has_one_generator_and_is_always_current(monkeypatch) -> None:
    state = {"now": torch.tensor([1])}
    one = SimpleNamespace(
        get_rng_state=lambda: state["now"], set_rng_state=lambda given: state.update(now=given)
    )
    monkeypatch.setattr(torch, "get_device_module", lambda _: one)
    mps = Device(torch.device("mps", 0))
    kept = mps.rng_state()
    state["now"] = torch.tensor([5])
    with mps.activated():
        mps.set_rng_state(kept)
    assert int(state["now"]) == 1


# How many train together.


@pytest.mark.parametrize(("launched", "ranks"), [(None, 1), ("", 1), ("1", 1), ("4", 4)])
def test_the_launcher_says_how_many_ranks_there_are(monkeypatch, launched, ranks) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if launched is not None:
        monkeypatch.setenv("WORLD_SIZE", launched)
    assert world_size() == ranks


def test_a_process_group_knows_better(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert world_size() == 2


# What it is able to do.


@pytest.mark.parametrize(
    ("capability", "float16", "bfloat16"),
    [((6, 1), False, False), ((7, 0), True, False), ((7, 5), True, False), ((8, 0), True, True),
     ((9, 0), True, True)],
)  # fmt: skip
def test_tensor_cores_decide_on_cuda(monkeypatch, capability, float16, bfloat16) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    gpu = Device(torch.device("cuda", 0))
    assert gpu.native_support(torch.float16) is float16
    assert gpu.native_support(torch.bfloat16) is bfloat16


def cpu_with(monkeypatch, *flags):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for name in ("avx512_bf16", "amx_tile", "avx512_fp16", "amx_fp16"):
        monkeypatch.setattr(
            torch.cpu, f"_is_{name}_supported", lambda name=name: name in flags, raising=False
        )
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: dict.fromkeys(flags, True), raising=False
    )
    return Device(CPU)


@pytest.mark.parametrize(
    ("flags", "float16", "bfloat16"),
    [
        ((), False, False),
        (("avx512_bf16",), False, True),
        (("amx_tile",), False, True),
        (("avx512_fp16",), True, False),
        (("avx512_bf16", "amx_tile", "amx_fp16"), True, True),
    ],
)
def test_instructions_decide_on_an_x86_cpu(monkeypatch, flags, float16, bfloat16) -> None:
    cpu = cpu_with(monkeypatch, *flags)
    assert cpu.native_support(torch.float16) is float16
    assert cpu.native_support(torch.bfloat16) is bfloat16


def test_the_default_dtype_is_torchs_own_for_that_device() -> None:
    assert Device(CPU).default_dtype() is torch.get_autocast_dtype("cpu")
    assert Device(torch.device("cuda", 0)).default_dtype() is torch.get_autocast_dtype("cuda")


def test_running_out_of_memory_is_told_from_other_errors() -> None:
    cpu = Device(CPU)
    assert cpu.is_oom(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert cpu.is_oom(caught.value)
    assert not cpu.is_oom(RuntimeError("shapes do not match"))
    assert not cpu.is_oom(MemoryError())


def test_the_cpu_needs_no_waiting_and_has_no_generator_of_its_own() -> None:
    cpu = Device(CPU)
    assert not cpu.is_accelerator
    assert cpu.rng_state() is None
    cpu.synchronize()
    cpu.empty_cache()
    cpu.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(2), expected)
    assert cpu.now() <= cpu.now()


def test_versions_of_a_cpu_run_name_torch_and_nothing_that_was_not_used() -> None:
    assert Device(CPU).versions() == {
        "torch": torch.__version__, "cuda": None, "cudnn": None, "driver": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "is_oom"),
    [
        ("DefaultCPUAllocator: can't allocate memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate", True),
        ("MPS backend out of memory", True),
        ("expected scalar type Float", False),
    ],
)
def test_memory_that_ran_out_is_known_by_what_the_libraries_say(text, is_oom) -> None:
    assert choose("cpu").is_oom(RuntimeError(text)) is is_oom
    assert not choose("cpu").is_oom(ValueError(text))


def test_only_the_device_that_is_measured_is_waited_for(monkeypatch) -> None:
    """Without a number torch waits for the current one, which may be another."""
    waited: list[tuple[object, ...]] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *given: waited.append(given))
    monkeypatch.setattr(torch.mps, "synchronize", lambda *given: waited.append(given))
    Device(torch.device("cuda:1")).synchronize()
    Device(torch.device("mps")).synchronize()
    Device(torch.device("cpu")).synchronize()
    assert waited == [(torch.device("cuda:1"),), ()]


def test_every_device_multiplies_in_float32() -> None:
    assert Device(CPU).native_support(torch.float32)
