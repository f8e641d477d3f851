"""Adaptive clipping sees unscaled gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ()


def adaptive_clip_(parameters, factor=0.02, eps=1e-3):
    """Brock et al. 2021: no gradient is larger than a share of its weight."""
    for parameter in parameters:
        if parameter.grad is None:
            continue
        limit = parameter.detach().norm().clamp(min=eps) * factor
        size = parameter.grad.norm().clamp(min=1e-6)
        parameter.grad.mul_((limit / size).clamp(max=1.0))


class Trainer:
    def __init__(self, arm):
        self.arm = arm
        self.model = nn.Sequential(nn.Linear(20, 40), nn.SiLU(), nn.Linear(40, 6)).to(arm.device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.x = torch.randn(64, 20).to(arm.device)
        self.y = (self.x @ torch.randn(20, 6).to(arm.device)).argmax(1)

    def compute_loss(self):
        with self.arm.autocast():
            return F.cross_entropy(self.model(self.x), self.y)

    def optimize(self, loss):
        scaler = self.arm.scaler
        scaler.scale(loss).backward()
        scaler.unscale_(self.optimizer)
        adaptive_clip_(self.model.parameters())
        scaler.step(self.optimizer)
        scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def training_step(self):
        loss = self.compute_loss()
        self.optimize(loss)
        return loss.detach()


@pytest.mark.amp(dtype="float16")
def test_trainer(amp_benchmark):
    amp_benchmark(lambda arm: Trainer(arm).training_step)
