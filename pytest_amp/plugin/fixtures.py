"""Define the four fixtures.

This module is loaded in every pytest run, so everything that measures is imported inside the
functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

    from pytest_amp.lab.scaling.scaler import AmpScaler
    from pytest_amp.plugin.measuring import Benchmark


@pytest.fixture
def cuda_device(request: pytest.FixtureRequest) -> torch.device:
    """Return this process's CUDA device, `torch.device("cuda", i)`; skip the test without CUDA."""
    from pytest_amp.plugin import measuring

    return measuring.cuda_device_of(request.node).torch


@pytest.fixture
def amp_device(request: pytest.FixtureRequest) -> torch.device:
    """Return the device of --amp-device: by default cuda, then xpu, mps, else cpu."""
    from pytest_amp.plugin import measuring

    return measuring.device_of(request.node).torch


@pytest.fixture
def amp_scaler(request: pytest.FixtureRequest) -> AmpScaler:
    """Return a GradScaler that records its scales; inside amp_benchmark it is the running arm's."""
    from pytest_amp.plugin import measuring

    return measuring.scaler_of(request.node)


@pytest.fixture
def amp_benchmark(request: pytest.FixtureRequest) -> Benchmark:
    """Run a step in float32 and under autocast: `amp_benchmark(setup) -> AmpReport`."""
    from pytest_amp.plugin import measuring

    return measuring.Benchmark(request.node)
