"""Measure how long an accelerator works in a step, from the kernels that torch's profiler sees."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pytest_amp.lab.machine.device import Device
from pytest_amp.lab.workbench import Workbench


def of_amp(bench: Workbench, warmup: int) -> float | None:
    """Return the `busy_s` of a step of the amp arm, built for this once more; None on a CPU.

    It comes after all timing: a profiler that has run once slows every later kernel launch.
    """
    if not bench.device.is_accelerator:
        return None
    bench.progress.at("profiling", "amp")
    with bench.built("amp") as resident, resident.active():
        for _ in range(max(1, warmup)):
            resident.step()
        return busy_s(bench.device, resident.step)


def busy_s(device: Device, step: Callable[[], object]) -> float | None:
    """Return the seconds in which kernels or copies ran in one call of `step`; None if unknown.

    Profiling slows the host but not the kernels, so compare the result with a step that was timed
    without it. If the step has a profiler of its own the result is unknown, since only one can run.
    """
    activity = getattr(ProfilerActivity, device.type.upper(), None)
    if not device.is_accelerator or activity is None or torch._C._autograd._profiler_enabled():
        return None
    device.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the profiler's own
        profiler = profile(activities=[activity])
        profiler.start()
        try:
            step()
            device.synchronize()
            is_ours = torch._C._autograd._profiler_enabled()
        finally:
            if torch._C._autograd._profiler_enabled():
                profiler.stop()
        return covered(profiler.events() or ()) if is_ours else None


def covered(events: Iterable[Any]) -> float | None:
    """Return the seconds that the device's own events cover, counting overlaps once."""
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type.name != "CPU" and not event.is_user_annotation
    )
    if not spans:
        return None
    total, until = 0.0, float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total / 1e6
