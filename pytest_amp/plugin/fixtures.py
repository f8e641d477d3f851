"""The four fixtures, and what stands behind them for one test.

Everything of ours beyond the settings is imported inside the functions, as torch is: this module
is loaded in every pytest run.
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
    """This process's CUDA device, `torch.device("cuda", i)`; skips the test without CUDA."""
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
    """The device of --amp-device: by default cuda, then xpu, mps, else cpu."""
    return device_of(request.node).torch


@pytest.fixture
def amp_scaler(request: pytest.FixtureRequest) -> AmpScaler:
    """An audited `torch.amp.GradScaler`; inside amp_benchmark it is the running arm's."""
    from pytest_amp.lab.scaling.scaler import FixtureScaler

    scaler = FixtureScaler(device_of(request.node).type)
    request.node.stash[_SCALER] = scaler
    return scaler


@pytest.fixture
def amp_benchmark(request: pytest.FixtureRequest) -> Benchmark:
    """`amp_benchmark(setup) -> AmpReport`: run setup's step under FP32 and under autocast."""
    return Benchmark(request.node)


class Benchmark:
    """The value of the `amp_benchmark` fixture: one measurement per test."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._called = False

    def __call__(
        self, setup: Callable[[Arm], Callable[[], Any]], *, check: bool = True
    ) -> AmpReport:
        """Measure, judge and assert the gates.

        Args:
            setup: called afresh for each arm, with the same seed; returns the step, a callable
                without arguments that runs one optimisation step and returns its loss.
            check: False leaves the asserting to the report's `check()`.

        Raises:
            AmpRegression: a gate failed, or a rule of severity error found something.
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
