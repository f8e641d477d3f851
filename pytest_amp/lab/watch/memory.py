"""Peak memory of one arm, above the level before it was built, once its first steps are behind it.

In them kernels are chosen by trying them, in buffers of their own, and whoever comes first pays for
what libraries then keep for the whole process: neither may count, or the order of the arms shows.

Accelerators count it themselves. The CPU's allocator does not, so its alloc and free events are
taken from torch's profiler, which must be started before the arm is built: the frees of blocks
that are older than the profiler are not reported.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch._C._profiler import RecordScope, _EventType
from torch.profiler import ProfilerActivity

from pytest_amp.lab.machine.device import Device
from pytest_amp.lab.watch.events import subscribed
from pytest_amp.lab.watch.profiler import Profiler

# What libraries keep of a first use (the states of cuDNN's dropout, their handles). What is more
# than that was kept by the user's own code, and counts.
MOST_KEPT_BY_LIBRARIES = 64 * 2**20
_GAVE_WAY = (
    "a CPU's allocations are counted by torch.profiler, and the step has one of its own, which ran "
    "instead"
)


@dataclass(frozen=True)
class Peak:
    """Bytes above the level at the start; None where the device has no such counter.

    `levels`: the bytes held at each `mark`. `unknown`: why there is none where there is a counter.
    """

    peak_bytes: int | None
    reserved_bytes: int | None
    levels: tuple[int, ...] = ()
    unknown: str | None = None


class PeakMemory(Protocol):
    """Entered before an arm is built, stopped while the arm is still there.

    `settled`: the peak is that of what comes from here on. `mark`: note the level. `less_kept`: the
    peak again, once the arm is gone, without what has stayed behind all the same.
    """

    def __enter__(self) -> PeakMemory: ...

    def settled(self) -> None: ...

    def mark(self) -> None: ...

    def stop(self) -> Peak: ...

    def less_kept(self, peak: Peak) -> Peak: ...

    def __exit__(self, *_: object) -> None: ...


def peak_memory(device: Device) -> PeakMemory:
    """The way to measure a peak on `device`."""
    if not device.is_accelerator:
        return _CpuPeak()
    if hasattr(device.module, "max_memory_allocated"):
        return _AcceleratorPeak(device)
    return _Unmeasured()


class _AcceleratorPeak:
    def __init__(self, device: Device) -> None:
        self._device = device
        self._allocated = self._reserved = 0
        self._levels: list[int] = []

    def __enter__(self) -> PeakMemory:
        gc.collect()
        device, module = self._device, self._device.module
        device.synchronize()
        device.empty_cache()
        module.reset_peak_memory_stats(device.torch)
        self._allocated = module.memory_allocated(device.torch)
        self._reserved = module.memory_reserved(device.torch)
        return self

    def settled(self) -> None:
        self._device.synchronize()
        self._device.module.reset_peak_memory_stats(self._device.torch)

    def mark(self) -> None:
        held = self._device.module.memory_allocated(self._device.torch)
        self._levels.append(held - self._allocated)

    def stop(self) -> Peak:
        self._device.synchronize()
        device, module = self._device.torch, self._device.module
        return Peak(
            module.max_memory_allocated(device) - self._allocated,
            module.max_memory_reserved(device) - self._reserved,
            tuple(self._levels),
        )

    def less_kept(self, peak: Peak) -> Peak:
        self._device.synchronize()
        self._device.empty_cache()
        device, module = self._device.torch, self._device.module
        return Peak(
            _less(peak.peak_bytes, module.memory_allocated(device) - self._allocated),
            _less(peak.reserved_bytes, module.memory_reserved(device) - self._reserved),
            peak.levels,
        )

    def __exit__(self, *_: object) -> None: ...


def _less(peak: int | None, kept: int) -> int | None:
    is_a_library_s = 0 < kept <= MOST_KEPT_BY_LIBRARIES
    return peak - kept if peak is not None and is_a_library_s else peak


class _CpuPeak:
    def __init__(self) -> None:
        self._profiler = Profiler(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._marks_ns: list[int] = []
        self._settled_ns = 0

    def __enter__(self) -> PeakMemory:
        gc.collect()
        self._profiler.start(_allocations_only())
        return self

    def __exit__(self, *_: object) -> None:
        self._profiler.stop()  # of an arm that raised, too: it must not go on into the next test

    def settled(self) -> None:
        self._settled_ns = time.time_ns()

    def mark(self) -> None:
        self._marks_ns.append(time.time_ns())

    def stop(self) -> Peak:
        self._profiler.stop()
        if self._profiler.gave_way:
            return Peak(None, None, unknown=_GAVE_WAY)
        profiler: Any = self._profiler.torch.profiler
        level = peak = 0
        live: dict[int, int] = {}
        levels: list[int] = []
        # A block that is older than the profiler is freed under a size that torch may remember
        # from an earlier profile of another block: only what was seen to come is seen to go.
        for event in _allocations_on_the_cpu(profiler.kineto_results.experimental_event_tree()):
            while len(levels) < len(self._marks_ns) and (
                event.start_time_ns > self._marks_ns[len(levels)]
            ):
                levels.append(level)
            block = event.extra_fields
            if block.alloc_size > 0:
                live[block.ptr] = block.alloc_size
                level += block.alloc_size
            else:
                level -= live.pop(block.ptr, 0)
            # What is held as the first steps end is the least that the peak can be.
            peak = max(peak, level) if event.start_time_ns >= self._settled_ns else level
        levels += [level] * (len(self._marks_ns) - len(levels))
        return Peak(peak, None, tuple(levels))

    def less_kept(self, peak: Peak) -> Peak:
        return peak


def _allocations_on_the_cpu(events: Iterable[Any]) -> list[Any]:
    """In the order of time. Beside a GPU there are its allocations, and events of its runtime."""
    found, waiting = [], list(events)[::-1]
    while waiting:
        event = waiting.pop()
        waiting += event.children[::-1]
        if event.tag == _EventType.Allocation and event.extra_fields.device.type == "cpu":
            found.append(event)
    return sorted(found, key=lambda event: event.start_time_ns)


@contextmanager
def _allocations_only() -> Iterator[None]:
    """Start a profiler that leaves the operators out, which cost more than all else about it.

    It is told to record a scope that nothing in a training step has; allocations have none.
    """

    def enable_scoped(enable: Any, config: Any, activities: Any) -> None:
        enable(config, activities, {RecordScope.STATIC_RUNTIME_OP})

    with subscribed(profiler_enabled=enable_scoped):
        yield


class _Unmeasured:
    def __enter__(self) -> PeakMemory:
        return self

    def settled(self) -> None: ...

    def mark(self) -> None: ...

    def stop(self) -> Peak:
        return Peak(None, None)

    def less_kept(self, peak: Peak) -> Peak:
        return peak

    def __exit__(self, *_: object) -> None: ...
