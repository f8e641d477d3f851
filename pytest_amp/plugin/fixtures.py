"""Define the four fixtures.

This module is loaded in every pytest run, so torch, and all of our own code but the settings, is
imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_amp.plugin import collection
from pytest_amp.plugin.measuring import _SCALER, _what_torch_sees, device_of, measure, settings_of

if TYPE_CHECKING:
    import torch

    from pytest_amp.lab.arm import Arm
    from pytest_amp.lab.scaling.scaler import AmpScaler
    from pytest_amp.results.report import AmpReport


@pytest.fixture
def cuda_device(request: pytest.FixtureRequest) -> torch.device:
    """Return this process's CUDA device, `torch.device("cuda", i)`; skip the test without CUDA."""
    from pytest_amp.lab.machine import device

    settings = settings_of(request.node)
    found = device.cuda()
    if found is not None and settings.device.startswith("cuda:"):
        found = device.choose(settings.device)
    if found is None:
        reason = f"needs a CUDA device: {_what_torch_sees()}"
        if "device" in settings.strict:
            pytest.fail(f"{reason}, and --amp-strict asks for it", pytrace=False)
        pytest.skip(reason)
    return found.torch


@pytest.fixture
def amp_device(request: pytest.FixtureRequest) -> torch.device:
    """Return the device of --amp-device: by default cuda, then xpu, mps, else cpu."""
    return device_of(request.node).torch


@pytest.fixture
def amp_scaler(request: pytest.FixtureRequest) -> AmpScaler:
    """Return a GradScaler that records its scales; inside amp_benchmark it is the running arm's."""
    from pytest_amp.lab.scaling.scaler import FixtureScaler

    scaler = FixtureScaler(device_of(request.node).type)
    request.node.stash[_SCALER] = scaler
    return scaler


@pytest.fixture
def amp_benchmark(request: pytest.FixtureRequest) -> Benchmark:
    """Run a step in float32 and under autocast: `amp_benchmark(setup) -> AmpReport`."""
    return Benchmark(request.node)


class Benchmark:
    """The value of the `amp_benchmark` fixture. It measures once per test."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._called = False

    def __call__(
        self, setup: Callable[[Arm], Callable[[], Any]], *, check: bool = True
    ) -> AmpReport:
        """Measure both arms, judge them, assert the gates, and return the report.

        Args:
            setup: builds an arm; it is called for each arm, with the same seed. It returns the
                step: a function without arguments that runs one optimization step and returns its
                loss.
            check: whether to assert the gates; if not, call the report's `check()` yourself.

        Raises:
            AmpRegression: a gate failed, or a finding of severity error is not suppressed.
            AmpInconclusive: under ``--amp-strict``, a gate has no answer.
            AmpError: the test can't be measured as it is written.
        """
        __tracebackhide__ = True
        from pytest_amp.errors import AmpError

        if self._called:
            raise AmpError(
                "amp_benchmark was called twice in one test: one test is one measurement; "
                "use @pytest.mark.parametrize for several configurations"
            )
        if not collection.is_amp(self._item):
            raise AmpError(
                "amp_benchmark was requested by request.getfixturevalue alone, so that `-m amp` "
                "does not select this test: make it an argument of the test, or mark it amp"
            )
        if not callable(setup):
            raise AmpError(
                f"amp_benchmark(setup) takes a function of the arm, not a {type(setup).__name__}"
            )
        self._called = True
        report = measure(self._item, setup, device_of(self._item))
        if check:
            report.check()
        return report
