"""Ask NVIDIA's management library about a GPU: its clocks, what holds them back, who else uses it.

Its bindings are in the package nvidia-ml-py, which nothing here requires.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from pytest_amp.observations import GpuState

# NVML's reasons for holding the clocks back, without those that are no fault: an idle GPU and
# locked clocks.
_BRAKES = {
    "SwPowerCap": "its power cap", "HwSlowdown": "the hardware", "SyncBoost": "another GPU",
    "SwThermalSlowdown": "its temperature", "HwThermalSlowdown": "its temperature",
    "HwPowerBrakeSlowdown": "the power supply",
}  # fmt: skip


class Unknown(Exception):
    """NVML does not answer; the message says why."""


class Health(NamedTuple):
    """What NVML says of a GPU.

    Attributes:
        state: its clock, and what holds it back.
        most_mhz: the highest clock that it has.
        celsius: its temperature.
        busy: for how much of the last second a kernel ran, in percent.
    """

    state: GpuState
    most_mhz: int
    celsius: int
    busy: int


class Gpu:
    """A GPU, by the UUID that torch gives.

    Raises:
        Unknown: the bindings are not installed, or NVML fails.
    """

    def __init__(self, uuid: str) -> None:
        try:
            import pynvml  # type: ignore[import-not-found, import-untyped, unused-ignore]
        except ImportError:
            raise Unknown("pip install nvidia-ml-py to read them") from None
        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
            unique = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
            self._gpu = pynvml.nvmlDeviceGetHandleByUUID(unique.encode())
            self.state()
        except Exception as error:  # NVML fails in many ways
            raise Unknown(f"NVML says {error}") from error

    def state_if_known(self) -> GpuState | None:
        """Return its clock and what holds it back; None if NVML fails."""
        try:
            return self.state()
        except Exception:  # noqa: BLE001 - no measurement ends for it
            return None

    def state(self) -> GpuState:
        """Return its clock and what holds it back."""
        nvml = self._nvml
        reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._gpu)
        held = dict.fromkeys(
            cause
            for reason, cause in _BRAKES.items()
            if reasons & getattr(nvml, f"nvmlClocksThrottleReason{reason}", 0)
        )
        return GpuState(nvml.nvmlDeviceGetClockInfo(self._gpu, nvml.NVML_CLOCK_SM), tuple(held))

    def health(self) -> Health:
        """Return what else there is to know before one measures on it.

        Raises:
            Unknown: NVML fails.
        """
        nvml = self._nvml
        try:
            return Health(
                self.state(),
                nvml.nvmlDeviceGetMaxClockInfo(self._gpu, nvml.NVML_CLOCK_SM),
                nvml.nvmlDeviceGetTemperature(self._gpu, nvml.NVML_TEMPERATURE_GPU),
                nvml.nvmlDeviceGetUtilizationRates(self._gpu).gpu,
            )
        except Exception as error:
            raise Unknown(f"NVML says {error}") from error

    def other_processes(self) -> int | None:
        """Return how many other processes have it open; None if NVML does not say.

        In a container, the numbers of other processes are unknown, but not how many there are.
        """
        try:
            found = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._gpu)
        except Exception:  # noqa: BLE001
            return None
        # Whoever asked for this process waits for it.
        own = sum(each.pid in (os.getpid(), os.getppid()) for each in found)
        return len(found) - (own or bool(found))
