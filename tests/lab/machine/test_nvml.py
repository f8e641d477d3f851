"""What NVML says of a GPU, from a library that stands in for it."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_amp.lab.machine import nvml
from pytest_amp.observations import GpuState


class Library(SimpleNamespace):
    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0
    nvmlClocksThrottleReasonGpuIdle = 1
    nvmlClocksThrottleReasonSwPowerCap = 4
    nvmlClocksThrottleReasonHwThermalSlowdown = 64

    def __init__(self, reasons: int = 0, pids: tuple[int, ...] = (), **more: Any) -> None:
        self.asked: list[bytes] = []
        running = [SimpleNamespace(pid=each) for each in pids]
        super().__init__(
            nvmlInit=lambda: None,
            nvmlDeviceGetHandleByUUID=self.asked.append,
            nvmlDeviceGetCurrentClocksThrottleReasons=lambda _: reasons,
            nvmlDeviceGetClockInfo=lambda *_: 1410,
            nvmlDeviceGetComputeRunningProcesses=lambda _: running,
            **more,
        )


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(*args: Any, **more: Any) -> Library:
        made = Library(*args, **more)
        monkeypatch.setitem(sys.modules, "pynvml", made)
        return made

    return install


@pytest.mark.parametrize("uuid", ["ab-12", "GPU-ab-12"])
def test_the_gpu_is_the_one_with_torchs_uuid(library, uuid) -> None:
    asked = library().asked
    nvml.Gpu(uuid)
    assert asked == [b"GPU-ab-12"]


def test_a_slice_of_a_gpu_keeps_its_own(library) -> None:
    asked = library().asked
    nvml.Gpu("MIG-ab-12")
    assert asked == [b"MIG-ab-12"]


@pytest.mark.parametrize(
    ("reasons", "held"),
    [(0, ()), (1, ()), (64, ("its temperature",)), (68, ("its power cap", "its temperature"))],
)
def test_what_holds_the_clocks_back_is_told_and_idleness_is_no_brake(
    library, reasons, held
) -> None:
    library(reasons)
    assert nvml.Gpu("ab").state() == GpuState(1410, held)


@pytest.mark.parametrize(
    ("pids", "others"),
    [((), 0), ((os.getpid(),), 0), ((os.getpid(), 1, 2), 2), ((101, 102), 1), ((101,), 0)],
)
def test_other_processes_are_those_beside_ours_whose_number_a_container_may_not_know(
    library, pids, others
) -> None:
    library(pids=pids)
    assert nvml.Gpu("ab").other_processes() == others


def test_processes_that_may_not_be_listed_are_unknown(library) -> None:
    gpu = library()
    gpu.nvmlDeviceGetComputeRunningProcesses = lambda _: 1 / 0
    assert nvml.Gpu("ab").other_processes() is None


def test_without_the_bindings_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(nvml.Unknown, match="pip install nvidia-ml-py"):
        nvml.Gpu("ab")


def test_what_fails_is_told_where_the_gpu_is_opened(library) -> None:
    broken = library()
    broken.nvmlDeviceGetClockInfo = lambda *_: 1 / 0
    with pytest.raises(nvml.Unknown, match="NVML says division by zero"):
        nvml.Gpu("ab")
