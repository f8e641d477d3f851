"""Letting go of what an arm left behind, without looking through all of torch each time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from pytest_amp.lab.machine.device import Device


@contextmanager
def older_objects_set_aside(device: Device) -> Iterator[None]:
    """Inside, the garbage collector looks only at what is made inside.

    An arm is let go of by a full collection, so that its memory is not counted as the next arm's.
    With torch imported one takes 0.1 s, nearly all of it spent on objects that stay.
    """
    if gc.get_freeze_count():  # somebody else's, and `unfreeze` would thaw it
        yield
        return
    if device.is_accelerator:  # whose memory is short, and may be held by what earlier tests left
        gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()  # now, or what was made inside would be set aside with all else the next time
        gc.unfreeze()
