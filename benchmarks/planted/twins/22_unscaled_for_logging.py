"""Gradients are unscaled once, for the logger and for clipping."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ()


class GradientLogger:
    def __init__(self, every=5):
        self.every, self.norms = every, []

    def log(self, step, model):
        if step % self.every == self.every - 1:
            squares = [p.grad.square().sum() for p in model.parameters()]
            self.norms.append(float(torch.stack(squares).sum().sqrt()))


class Loop:
    def __init__(self, arm):
        self.arm, self.steps, self.logger = arm, 0, GradientLogger()
        self.model = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 1)).to(arm.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=2e-3)
        self.x = torch.randn(32, 12).to(arm.device)
        self.y = self.x.sum(1, keepdim=True).sin()

    def clip(self):
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)

    def step(self):
        self.optimizer.zero_grad()
        with self.arm.autocast():
            loss = F.mse_loss(self.model(self.x), self.y)
        self.arm.scaler.scale(loss).backward()
        self.arm.scaler.unscale_(self.optimizer)
        self.logger.log(self.steps, self.model)
        self.clip()
        self.arm.scaler.step(self.optimizer)
        self.arm.scaler.update()
        self.steps += 1
        return loss


@pytest.mark.amp(dtype="float16")
def test_logged_loop(amp_benchmark):
    amp_benchmark(lambda arm: Loop(arm).step)
