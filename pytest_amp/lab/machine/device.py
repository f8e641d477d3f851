"""The one module that knows device types; all others ask a `Device`."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from pytest_amp.errors import AmpError
from pytest_amp.lab.machine import contention, nvml
from pytest_amp.settings.thresholds import DeviceNames

_PREFERRED = ("cuda", "xpu", "mps")
# What libraries below torch say when they run out of memory without raising OutOfMemoryError.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "_ALLOC_FAILED", "out of memory")


class Device:
    """A torch device with a clock, a memory counter and a name.

    Tests replace it with a device that has a simulated clock, by overriding `now` and
    `synchronize`.
    """

    def __init__(self, device: torch.device) -> None:
        self.torch = device

    def __str__(self) -> str:
        return str(self.torch)

    @property
    def type(self) -> str:
        """The device's type: cuda, xpu, mps or cpu."""
        return self.torch.type

    @property
    def module(self) -> ModuleType:
        """The device's module: torch.cuda, torch.xpu, torch.mps or torch.cpu."""
        module: ModuleType = torch.get_device_module(self.torch)
        return module

    @property
    def is_accelerator(self) -> bool:
        """Whether the device is anything but a CPU."""
        return self.type != "cpu"

    def initialize(self) -> None:
        """Start the device's runtime; without it there are no streams and no generators."""
        start = getattr(self.module, "init", None)
        if self.is_accelerator and start is not None:
            start()

    def now(self) -> float:
        """Return seconds on a monotonic clock."""
        return time.perf_counter()

    def synchronize(self) -> None:
        """Wait until all work that was queued on the device is done."""
        if not self.is_accelerator:
            return
        if self.type == "mps":  # there is only one such device, and its function takes no argument
            self.module.synchronize()
        else:
            self.module.synchronize(self.torch)

    def pause(self, seconds: float) -> None:
        """Let nothing run for so long."""
        time.sleep(seconds)

    def names(self) -> DeviceNames:
        """Return the names that thresholds by device are matched against."""
        if self.type == "cuda":
            major, minor = torch.cuda.get_device_capability(self.torch)
            rocm = torch.version.hip is not None
            arch = None if rocm else f"sm{major}{minor}"
            kind = "rocm" if rocm else "cuda"
            return DeviceNames(torch.cuda.get_device_name(self.torch), arch, kind)
        return DeviceNames(self.name(), None, self.type)

    def name(self) -> str:
        """Return the device's name, such as ``NVIDIA H100 80GB HBM3``, or the processor's model."""
        describe = getattr(self.module, "get_device_name", None)
        if self.is_accelerator and describe is not None:
            return str(describe(self.torch))
        return _processor()

    def default_dtype(self) -> torch.dtype:
        """Return the dtype that ``torch.autocast`` uses on this device by default."""
        return torch.get_autocast_dtype(self.type)

    def native_support(self, dtype: torch.dtype) -> bool:
        """Return whether the device has a fast path for matrix products in `dtype`."""
        if dtype not in (torch.float16, torch.bfloat16):  # as in an arm that stays in float32
            return True
        if self.type == "cuda" and torch.version.hip is None:
            capability = torch.cuda.get_device_capability(self.torch)
            return capability >= ((8, 0) if dtype is torch.bfloat16 else (7, 0))
        if self.type == "cpu":
            return _cpu_has(dtype)
        return True

    def is_oom(self, error: BaseException) -> bool:
        """Return whether `error` says that memory ran out."""
        return isinstance(error, torch.OutOfMemoryError) or (
            isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)
        )

    def allocation_retries(self) -> int:
        """Return how often the allocator had to free its cache to find room; 0 if unknown."""
        stats = getattr(self.module, "memory_stats", None)
        if not self.is_accelerator or stats is None:
            return 0
        return int(stats(self.torch).get("num_alloc_retries", 0))

    def empty_cache(self) -> None:
        """Free cached blocks, so that the next arm starts from the same level.

        cuBLAS's workspaces are freed as well: otherwise the first arm would pay for both.
        """
        if self.type == "cuda":
            torch._C._cuda_clearCublasWorkspaces()
        empty = getattr(self.module, "empty_cache", None)
        if self.is_accelerator and empty is not None:
            empty()

    def rng_state(self) -> Any:
        """Return the states of this type's generators; None on a CPU, which uses torch's own."""
        if not self.is_accelerator:
            return None
        every = getattr(self.module, "get_rng_state_all", None)
        return self.module.get_rng_state() if every is None else every()

    def set_rng_state(self, state: Any) -> None:
        """Restore what `rng_state` returned."""
        if isinstance(state, torch.Tensor):
            self.module.set_rng_state(state)
        elif state is not None:
            self.module.set_rng_state_all(state)

    def manual_seed(self, seed: int) -> None:
        """Seed the generator that draws on this device."""
        if self.is_accelerator:
            self.module.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    @contextmanager
    def activated(self) -> Iterator[None]:
        """Make this the current device inside, if there are several."""
        current = getattr(self.module, "current_device", None)
        if not self.is_accelerator or self.torch.index is None or current is None:
            yield
            return
        former = current()
        self.module.set_device(self.torch.index)
        try:
            yield
        finally:
            self.module.set_device(former)

    @contextmanager
    def sync_debug_mode(self, mode: int | None) -> Iterator[None]:
        """Set torch's mode for reporting waits for the device inside; None changes nothing.

        If the code inside sets another mode, that one stays.
        """
        setter = getattr(self.module, "set_sync_debug_mode", None)
        if mode is None or setter is None or not self.is_accelerator:
            yield
            return
        read = self.module.get_sync_debug_mode
        former = read()
        setter(mode)
        try:
            yield
        finally:
            if read() == mode:
                setter(former)

    def lock_name(self) -> str:
        """Return the name under which measurements take turns, across processes.

        It is the device's UUID if there is one, since the index depends on which devices are
        visible.
        """
        return re.sub(r"[^A-Za-z0-9]+", "-", self.uuid() or str(self.torch)).strip("-")

    def uuid(self) -> str | None:
        """Return the device's UUID, as torch tells it; None if it has none."""
        describe = getattr(self.module, "get_device_properties", None)
        unique = getattr(describe(self.torch), "uuid", None) if describe else None
        return None if unique is None else str(unique)

    @cached_property
    def nvml(self) -> nvml.Gpu | None:
        """NVIDIA's management library for this device; None without its bindings."""
        unique = self.uuid() if self.type == "cuda" and torch.version.hip is None else None
        try:
            return None if unique is None else nvml.Gpu(unique)
        except nvml.Unknown:
            return None

    def counters(self) -> contention.Counters | None:
        """Return the system's counters of other work; None where there is nothing to count."""
        return contention.read()

    def versions(self) -> dict[str, str | None]:
        """Return the versions of torch, cuda (or HIP), cudnn and driver; None for missing ones."""
        on_cuda = self.type == "cuda"
        cudnn = torch.backends.cudnn.version() if on_cuda else None
        return {
            "torch": torch.__version__,
            "cuda": (torch.version.cuda or torch.version.hip) if on_cuda else None,
            "cudnn": None if cudnn is None else str(cudnn),
            "driver": _nvidia_driver() if on_cuda else None,
        }


def world_size() -> int:
    """Return how many ranks train together, by the process group or the launcher; 1 without one."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_world_size())
    launched = os.environ.get("WORLD_SIZE", "")
    return int(launched) if launched.isdigit() else 1


def choose(setting: str) -> Device:
    """Return the device that the setting names.

    Raises:
        AmpError: this machine has no such device.
    """
    if setting == "auto":
        kind = next((name for name in _PREFERRED if how_many(name)), "cpu")
        return _nth(kind)
    kind, _, index = setting.partition(":")
    count = how_many(kind)
    if kind == "cpu":
        return Device(torch.device("cpu"))
    if (index and int(index) >= count) or not count:
        raise AmpError(
            f"the device {setting!r} is not there: this machine has {_inventory()}. "
            "Choose another with --amp-device, or auto; where a marker names it, with "
            "--amp-override device=..."
        )
    return Device(torch.device(kind, int(index))) if index else _nth(kind)


def has_accelerator() -> bool:
    """Return whether this machine has a device other than its CPU."""
    return any(map(how_many, _PREFERRED))


def cuda() -> Device | None:
    """Return this process's CUDA device; None without CUDA."""
    return _nth("cuda") if how_many("cuda") else None


def unseen() -> str | None:
    """Return what torch was built for (``CUDA 13.0``) if it sees no accelerator; else None."""
    if has_accelerator():
        return None
    version: Any = torch.version
    built = {"CUDA": version.cuda, "ROCm": version.hip, "XPU": getattr(version, "xpu", None)}
    return next((f"{name} {release}" for name, release in built.items() if release), None)


def _nth(kind: str) -> Device:
    if kind in ("cpu", "mps"):
        return Device(torch.device(kind))
    return Device(torch.device(kind, _own_index() % how_many(kind)))


def _own_index() -> int:
    """Return the rank's device under a launcher, the worker's under xdist, else the first."""
    if rank := os.environ.get("LOCAL_RANK"):
        return int(rank)
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    return int(worker) if worker.isdigit() else 0


def how_many(kind: str) -> int:
    """Return how many devices of a type are there."""
    if kind == "cpu":
        return 1
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module: Any = getattr(torch, kind, None)
    return int(module.device_count()) if module is not None and module.is_available() else 0


def _inventory() -> str:
    there = [f"{kind} (device 0 to {n - 1})" for kind in _PREFERRED if (n := how_many(kind))]
    return ", ".join([*there, "cpu"])


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(
            r"^model name\s*:\s*(.+)$", info.read_text(errors="replace"), re.MULTILINE
        )
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _cpu_has(dtype: torch.dtype) -> bool:
    if platform.machine().lower() in ("x86_64", "amd64"):
        names = (
            ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
            if dtype is torch.bfloat16
            else ("_is_avx512_fp16_supported", "_is_amx_fp16_supported")
        )
        probes = [getattr(torch.cpu, name, None) for name in names]
        if any(probe() for probe in probes if probe is not None):
            return True
        capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)()
        return dtype is torch.float16 and bool(capabilities.get("avx512_fp16"))
    supported = (
        torch.ops.mkldnn._is_mkldnn_bf16_supported
        if dtype is torch.bfloat16
        else torch.ops.mkldnn._is_mkldnn_fp16_supported
    )
    return bool(supported())


def _nvidia_driver() -> str | None:
    path = Path("/proc/driver/nvidia/version")
    try:
        found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", path.read_text(errors="replace"))
    except OSError:
        return None
    return found[1] if found else None
