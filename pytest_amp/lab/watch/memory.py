"""Measure one arm's peak memory, above the level before it was built, after its first steps.

In its first steps, kernels are chosen by trial in buffers of their own, and the first arm pays for
what libraries then keep for the whole process. Neither may count, or the order of the arms would
show in the result.

Accelerators count memory themselves. The CPU's allocator does not, so its events are taken from
torch's profiler. The profiler must be started before the arm is built, since it does not report the
freeing of blocks that are older than itself.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Protocol

import torch
from torch._C._profiler import RecordScope
from torch.profiler import ProfilerActivity

from pytest_amp.lab.machine.device import Device
from pytest_amp.lab.watch.events import subscribed
from pytest_amp.lab.watch.profiler import Profiler

# The most that libraries keep after their first use, such as handles and the states of cuDNN's
# dropout. If more is kept, it is the user's code that keeps it, and it counts.
MOST_KEPT_BY_LIBRARIES = 64 * 2**20
_CPU = torch.device("cpu")
_GAVE_WAY = (
    "a CPU's allocations are counted by torch.profiler, and the step has one of its own, which ran "
    "instead"
)


@dataclass(frozen=True)
class Peak:
    """The result of a measurement, in bytes above the level at its start.

    Attributes:
        peak_bytes: the peak of allocated memory; None if the device has no such counter.
        reserved_bytes: the peak of what the allocator reserved; None if it does not count that.
        levels: the bytes held at each `mark`.
        unknown: why there is no peak although the device has a counter.
    """

    peak_bytes: int | None
    reserved_bytes: int | None
    levels: tuple[int, ...] = ()
    unknown: str | None = None


class PeakMemory(Protocol):
    """A measurement, entered before an arm is built and stopped while the arm is still there."""

    def __enter__(self) -> PeakMemory: ...

    def settled(self) -> None:
        """Begin the peak here: what came before does not count."""

    def mark(self) -> None:
        """Note how many bytes are held now."""

    def stop(self) -> Peak:
        """End the measurement and return its result."""

    def less_kept(self, peak: Peak) -> Peak:
        """Return the peak without what libraries kept. Call it once the arm is gone."""

    def __exit__(self, *_: object) -> None: ...


def peak_memory(device: Device) -> PeakMemory:
    """Return the measurement that fits `device`."""
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


_running: list[_CpuPeak] = []


def workspace(began_ns: int) -> None:
    """Leave out of the peak what was allocated, and freed again, since a point of time.

    It is the workspace of a kernel that stands for another device's, which has none.

    Args:
        began_ns: when that kernel began, by `time.time_ns`.
    """
    for each in _running:
        each.workspaces_ns.append((began_ns, time.time_ns()))


class _CpuPeak:
    def __init__(self) -> None:
        self._profiler = Profiler(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._marks_ns: list[int] = []
        self._settled_ns = 0
        self.workspaces_ns: list[tuple[float, float]] = []

    def __enter__(self) -> PeakMemory:
        gc.collect()
        self._profiler.start(_allocations_only())
        _running.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self in _running:
            _running.remove(self)
        self._profiler.stop()  # also if the arm raised: it must not run on into the next test

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
        # When a block that is older than the profiler is freed, torch may report the size of
        # another block, from an earlier profile. So only blocks that were seen to come count.
        marks = iter((*self._marks_ns, math.inf))
        mark = next(marks)
        workspaces = iter((*sorted(self.workspaces_ns), (math.inf, math.inf)))
        began, ended = next(workspaces)
        for time_ns, place, size in _on_the_cpu(profiler.kineto_results.experimental_event_tree()):
            while time_ns > mark:
                levels.append(level)
                mark = next(marks)
            while time_ns > ended:  # what the kernel returned is there now
                peak = max(peak, level)
                began, ended = next(workspaces)
            if size > 0:
                live[place] = size
                level += size
            else:
                level -= live.pop(place, 0)
            # Until the arm has settled, the peak is no more than what is held.
            if (level > peak and time_ns < began) or time_ns < self._settled_ns:
                peak = level
        levels += [level] * (len(self._marks_ns) - len(levels))
        return Peak(max(peak, level), None, tuple(levels))

    def less_kept(self, peak: Peak) -> Peak:
        return peak


def _on_the_cpu(events: Iterable[Any]) -> list[tuple[int, int, int]]:
    """Return what was allocated and freed on the CPU, ordered by time.

    With a GPU, the tree also has its allocations and events of its runtime.

    Returns:
        The time in ns, the address, and the bytes, which are negative where they were freed.
    """
    found: list[tuple[int, int, int]] = []
    waiting = list(events)[::-1]
    while waiting:  # there may be 100,000 of them, and each attribute is a call into C++
        event = waiting.pop()
        if event.name != "[memory]":
            waiting += event.children[::-1]
            continue
        block = event.extra_fields
        if block.device == _CPU:
            found.append((event.start_time_ns, block.ptr, block.alloc_size))
    return sorted(found, key=itemgetter(0))


@contextmanager
def _allocations_only() -> Iterator[None]:
    """Start a profiler inside that leaves operators out, since they cost more than everything else.

    It is made to record only a scope that never occurs in a training step; allocations are in no
    scope.
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
