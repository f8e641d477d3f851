"""How long an accelerator works in a step, as torch's profiler sees its kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch.profiler import ProfilerActivity, profile

from pytest_amp.run.device import Device


def busy_s(device: Device, step: Callable[[], object]) -> float | None:
    """Seconds in which kernels or copies ran in one such step; None where nothing tells.

    Profiling slows the host, not the kernels: compare it with a step that was timed without.
    """
    activity = getattr(ProfilerActivity, device.type.upper(), None)
    if not device.is_accelerator or activity is None:
        return None
    device.synchronize()
    with profile(activities=[activity]) as profiler:
        step()
        device.synchronize()
    return covered(profiler.events() or ())


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
