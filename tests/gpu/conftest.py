"""Everything here needs a CUDA device, and is skipped without one.

Where the package is not installed: ``pytest -p pytest_amp.plugin -o required_plugins= tests/gpu``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
