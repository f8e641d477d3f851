"""Training steps: some as small as possible, and some large enough to time on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from pytest_amp import Arm
from tests.helpers.lab import train

INF = float("inf")


def parameter(value=1.0):
    return nn.Parameter(torch.tensor([value]))


def sgd(*params, lr=0.1):
    return torch.optim.SGD(params, lr=lr)


def step(scaler, optimizers, params, loss=1.0):
    """One step whose loss is `loss` times the sum of the parameters."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    scaler.scale(loss * sum(p.sum() for p in params)).backward()
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()


Step = Callable[[], torch.Tensor]


def matmul_heavy(arm: Arm, width: int = 2048, layers: int = 4) -> Step:
    """Return a step of square linear layers, which spends nearly all of its time in matmuls."""
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers))).to(arm.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.randn(width, width, device=arm.device)
    return train(arm, optimizer, lambda: F.mse_loss(model(x), x))


def with_dropout(arm: Arm) -> Step:
    """Return a step of a transformer layer; on CUDA its dropout masks depend on the dtype."""
    layer = nn.TransformerEncoderLayer(128, 4, 256, 0.1, batch_first=True)
    model = nn.Sequential(layer, nn.Linear(128, 128)).to(arm.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x = torch.randn(16, 64, 128, device=arm.device)
    return train(arm, optimizer, lambda: F.mse_loss(model(x), x))
