"""Collect what an arm left behind, without searching all of torch each time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from pytest_amp.lab.machine.device import Device


@contextmanager
def older_objects_set_aside(device: Device) -> Iterator[None]:
    """Restrict the garbage collector to objects that are made inside.

    An arm is released by a full collection, so that its memory is not counted as the next arm's.
    With torch imported, a full collection takes 0.1 s, nearly all of it spent on objects that stay.
    """
    if gc.get_freeze_count():  # something else froze objects, and `unfreeze` would thaw them
        yield
        return
    if device.is_accelerator:  # earlier tests' garbage may hold memory, which is scarce there
        gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()  # before the next call sets aside what was made inside
        gc.unfreeze()
