"""Training steps that are large enough to say something about a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from pytest_amp import Arm
from tests.laboratory import train

Step = Callable[[], torch.Tensor]


def matmul_heavy(arm: Arm, width: int = 2048, layers: int = 4) -> Step:
    """Square linear layers over a batch as large: nearly all of the time is matrix products."""
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers))).to(arm.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.randn(width, width, device=arm.device)
    return train(arm, optimizer, lambda: F.mse_loss(model(x), x))


def with_dropout(arm: Arm) -> Step:
    """A transformer layer whose dropout masks depend on the dtype, as CUDA's do."""
    layer = nn.TransformerEncoderLayer(128, 4, 256, 0.1, batch_first=True)
    model = nn.Sequential(layer, nn.Linear(128, 128)).to(arm.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x = torch.randn(16, 64, 128, device=arm.device)
    return train(arm, optimizer, lambda: F.mse_loss(model(x), x))
