"""Parameters, optimizers and scaled steps of the smallest size."""

from __future__ import annotations

import torch
from torch import nn

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
