"""How long an accelerator works in a step, as torch's profiler sees its kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pytest_amp.lab.arm import Workbench
from pytest_amp.lab.machine.device import Device


def of_amp(bench: Workbench, warmup: int) -> float | None:
    """`busy_s` of a step of the amp arm, built once more; None on a CPU.

    Behind all timing: a profiler that was there once slows what launches kernels after it.
    """
    if not bench.device.is_accelerator:
        return None
    bench.progress.at("profiling", "amp")
    with bench.built("amp") as resident, resident.active():
        for _ in range(max(1, warmup)):
            resident.step()
        return busy_s(bench.device, resident.step)


def busy_s(device: Device, step: Callable[[], object]) -> float | None:
    """Seconds in which kernels or copies ran in one such step; None where nothing tells.

    Profiling slows the host, not the kernels: compare it with a step that was timed without. Beside
    a profiler of the step's own there can be no second one: then it is not told.
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
    """Seconds that the device's own events cover, those that overlap counted once."""
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
