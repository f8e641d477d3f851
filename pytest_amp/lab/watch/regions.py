"""Follow a step into autocast's regions and out of them, thread by thread."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.source import framework, location
from pytest_amp.lab.watch.tensors import dtype_name
from pytest_amp.lab.watch.threads import EnteredRegion, Threads
from pytest_amp.observations import FRAMEWORKS, REDUCED, Region

__tracebackhide__ = unless_our_bug


class Regions:
    """Keeps each thread's place among the regions, and records which were entered.

    Args:
        threads: holds the places.

    Attributes:
        entered: how often a region was entered that casts to a reduced dtype.
        devices: the device types that regions were entered for, in that order.
        framework: the library whose loop runs the step.
    """

    def __init__(self, threads: Threads) -> None:
        self.entered = 0
        self.devices: dict[str, None] = {}
        self.framework: str | None = None
        self._threads = threads
        self._recording = True
        self._regions: list[EnteredRegion] = []

    def end(self) -> None:
        """Stop recording; from here on only keep each thread's place."""
        self._recording = False

    def by_line(self) -> tuple[Region, ...]:
        """Return the regions, one for all that one line entered alike."""
        found: dict[tuple[Any, ...], Region] = {}
        for each in self._regions:
            key = (each.location, each.device, each.dtype, each.nested)
            known = found.get(key, Region(*key))
            flops, made = known.flops + each.flops, known.bytes + each.bytes
            found[key] = replace(known, flops=flops, bytes=made)
        return tuple(found.values())

    def note_framework(self) -> None:
        """Look for the library whose loop runs the step, unless it is known."""
        self.framework = self.framework or framework(FRAMEWORKS)

    def around_enter(self, original: Any, region: Any, *args: Any) -> Any:
        """Follow a thread into a region."""
        in_force = region._enabled and dtype_name(region.fast_dtype) in REDUCED
        if self._recording:
            self.entered += in_force
            self.devices[region.device] = None
            self.note_framework()
        here = self._threads.here
        dtype = dtype_name(region.fast_dtype) if in_force else None
        entered = EnteredRegion(location(), region.device, dtype, here.autocast or here.island)
        here.entered.append(entered)
        if self._recording:
            self._regions.append(entered)
        here.regions.append((here.autocast, here.island))
        here.island = not in_force and (here.autocast or here.island)
        here.autocast = in_force
        return original(region, *args)

    def around_exit(self, original: Any, region: Any, *args: Any) -> Any:
        """Follow a thread out of a region."""
        here = self._threads.here
        here.autocast, here.island = here.regions.pop() if here.regions else (False, False)
        del here.entered[-1:]
        return original(region, *args)
