"""Collect what an arm left behind, without searching all of torch each time."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager

from pytest_amp.lab.machine.device import Device
from pytest_amp.lab.machine.global_state import quietly

# The first optimizer imports the one, and the first profile of a CPU's memory the other.
_IMPORTED_ANYWAY = ("torch._dynamo", "torch._inductor")


@contextmanager
def older_objects_set_aside(device: Device) -> Iterator[None]:
    """Restrict the garbage collector to objects that are made inside.

    An arm is released by a full collection, so that its memory is not counted as the next arm's.
    With torch imported, a full collection takes 0.1 s, nearly all of it spent on objects that stay.
    """
    if gc.get_freeze_count():  # something else froze objects, and `unfreeze` would thaw them
        yield
        return
    with quietly():
        for name in _IMPORTED_ANYWAY[: 1 if device.is_accelerator else None]:
            importlib.import_module(name)  # here, so that their many objects are set aside too
    if device.is_accelerator:  # earlier tests' garbage may hold memory, which is scarce there
        gc.collect()
    try:
        gc.freeze()
        yield
    finally:
        try:
            gc.collect()  # before the next call sets aside what was made inside
        finally:
            gc.unfreeze()
