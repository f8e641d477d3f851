"""For the tests that build hundreds of arms."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_amp.lab.machine.device import Device
from pytest_amp.lab.machine.garbage import older_objects_set_aside
from tests.helpers.lab import CPU


@pytest.fixture(scope="package", autouse=True)
def _older_objects_set_aside() -> Iterator[None]:
    """Once for all, where an experiment does it for itself: each arm ends with a collection."""
    with older_objects_set_aside(Device(CPU)):
        yield
