"""What the cases are made of: small models, data, and the plain training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.amp import GradScaler

from tests.helpers.lab import train

BF16, FP16 = torch.bfloat16, torch.float16


def mlp(wide: int = 16) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, wide), nn.ReLU(), nn.Linear(wide, 4))


def batch(size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(size, 8), torch.randint(4, (size,))


def sgd(*models: nn.Module, lr: float = 0.05) -> torch.optim.SGD:
    return torch.optim.SGD([p for model in models for p in model.parameters()], lr=lr)


def classifier(arm: Any, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Any:
    """The plain step of a model from 8 numbers to 4 classes, on one repeated batch."""
    x, y = batch()
    return train(arm, optimizer or sgd(model), lambda: F.cross_entropy(model(x).float(), y))


def scaled(
    arm: Any,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    edit: Callable[[GradScaler], object] = lambda _: None,
    scaler: GradScaler | None = None,
    loss_of: Callable[[], torch.Tensor] | None = None,
    end: Callable[[GradScaler], object] | None = None,
) -> Callable[[], torch.Tensor]:
    """The plain step with a GradScaler, for what goes wrong with one.

    `edit` runs between the backward pass and the scaler's step; `end` replaces the scaler's step
    and its update.
    """
    scaler, (x, y) = scaler or arm.scaler, batch()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        with arm.autocast():
            loss = loss_of() if loss_of else F.cross_entropy(model(x).float(), y)
        scaler.scale(loss).backward()
        edit(scaler)
        if end:
            end(scaler)
        else:
            scaler.step(optimizer)
            scaler.update()
        return loss

    return step


def stepping(
    arm: Any, optimizer: torch.optim.Optimizer, loss_of: Callable[[], torch.Tensor]
) -> Callable[[], torch.Tensor]:
    """A step without a scaler whose loss enters what regions it likes."""

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
