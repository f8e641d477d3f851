"""A monitor of overflows keeps a copy of every scaled gradient of every step; keep numbers, or
the copies of the last step alone.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ("AMP502",)


class OverflowMonitor:
    """Which gradient overflowed, should one."""

    def __init__(self, scaler):
        self.scaler, self.records = scaler, []

    def record(self, model):
        if self.scaler.is_enabled():
            scale = self.scaler.get_scale()
            gradients = {name: p.grad.clone() for name, p in model.named_parameters()}  # <- here
            self.records.append((scale, gradients))  # <- here


class Loop:
    def __init__(self, arm):
        self.arm, self.monitor = arm, OverflowMonitor(arm.scaler)
        layers = [nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 4)]
        self.model = nn.Sequential(*layers).to(arm.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.generator = torch.Generator().manual_seed(0)

    def batch(self):
        x = torch.randn(64, 16, generator=self.generator)
        return x.to(self.arm.device), x[:, :4].argmax(1).to(self.arm.device)

    def step(self):
        x, y = self.batch()
        self.optimizer.zero_grad()
        with self.arm.autocast():
            loss = F.cross_entropy(self.model(x), y)
        self.arm.scaler.scale(loss).backward()
        self.monitor.record(self.model)
        self.arm.scaler.step(self.optimizer)
        self.arm.scaler.update()
        return loss


@pytest.mark.amp(dtype="float16")
def test_monitored(amp_benchmark):
    amp_benchmark(lambda arm: Loop(arm).step)
