"""For the tests that run pytest inside pytest."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

# Two threads that wait for each other beside another process keep neither time nor pace; no test
# is about that. Read by torch and numpy when they are imported, and by the runs in processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A run inside this process forgets the modules that it imported, and torch can't be imported
# twice: whatever an inner run may import of it is imported here first.
import numpy  # noqa: F401
import pytest
import torch._dynamo
import torch._inductor.compile_fx

import pytest_amp.experiment.run
import pytest_amp.plugin.benchmark
import pytest_amp.plugin.compare
import pytest_amp.plugin.live_line
import pytest_amp.plugin.makereport  # noqa: F401
from pytest_amp.lab.machine.device import Device
from tests.helpers.project import CONFTEST

TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def _older_objects_set_aside(request: pytest.FixtureRequest) -> Iterator[None]:
    """At the end of each inner run, pytest collects garbage five times: only the run's own."""
    inner = "pytester" in request.fixturenames
    if inner:
        gc.freeze()
    yield
    if inner:
        gc.unfreeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a package that is not installed."""
    for item in items:
        needed = [name for mark in item.iter_markers("needs") for name in mark.args]
        absent = [name for name in needed if find_spec(name) is None]
        if absent:
            item.add_marker(pytest.mark.skip(reason=f"needs {' and '.join(absent)}"))


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with the fixtures model, optimizer, batch, and setup; 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    pytester.makeconftest(CONFTEST)
    return pytester


@pytest.fixture(autouse=True)
def _usual_options(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inner runs leave out what warns without a setting of its own, redraws, or shuffles.

    Autocast follows the CPU's own rules in them, also where there is no GPU. Tests that are about
    one of these set PYTEST_ADDOPTS themselves.
    """
    if "pytester" in request.fixturenames:
        request.getfixturevalue("pytester")
        monkeypatch.setenv(
            "PYTEST_ADDOPTS", "-p no:asyncio -p no:sugar -p no:randomly -o amp_policy=native"
        )


@pytest.fixture(autouse=True)
def _no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inner runs are their own, also where xdist runs these tests."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


@pytest.fixture(autouse=True)
def _not_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """What inner runs measure is not for the summary of the CI job that runs these tests."""
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE", "CI_PROJECT_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other work takes from the machine that runs these tests is no test's business."""
    monkeypatch.setattr(Device, "counters", lambda _: None)
    monkeypatch.setattr(Device, "pause", lambda *_: None)


@pytest.fixture(autouse=True)
def _without_a_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tests but those that ask for a GPU run as on a machine, and with a torch, without one."""
    asks_for_one = (TESTS / "gpu", TESTS / "catalogue")
    if not any(map(request.path.is_relative_to, asks_for_one)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for processes of their own
        for module in (torch.cuda, torch.xpu, torch.backends.mps):
            monkeypatch.setattr(module, "is_available", lambda: False)
        monkeypatch.setattr(torch.version, "cuda", None)
        monkeypatch.setattr(torch.version, "hip", None)
