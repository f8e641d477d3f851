"""Let measurements on one device take turns, across workers and across test runs."""

from __future__ import annotations

import getpass
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pytest_amp.lab.machine.device import Device
from pytest_amp.progress import Progress


@contextmanager
def turn(device: Device, progress: Progress) -> Iterator[None]:
    """Hold the device's lock file; show that this test waits while another process holds it."""
    lock = FileLock(_path(device))
    try:
        if not _taken(lock):
            progress.at(f"waiting: another test measures on {device}", None)
            lock.acquire()
        yield
    finally:
        lock.release()


def _taken(lock: FileLock) -> bool:
    """Take the lock, unless another process holds it; return whether it is ours now."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def _path(device: Device) -> Path:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "unknown"
    return Path(tempfile.gettempdir()) / f"pytest-amp-{user}-{device.lock_name()}.lock"
