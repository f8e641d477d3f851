"""Hooks clamp gradients while they are still scaled; they have to be clipped after unscale_."""

import pytest
import torch
import torch.nn.functional as F

EXPECT = ("AMP203", "loss gate")


def limit_gradients(model, limit):
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: gradient.clamp(-limit, limit))  # <- here


class Trainer:
    def __init__(self, arm, device):
        self.arm = arm
        self.model = torch.nn.Sequential(
            torch.nn.Linear(16, 64), torch.nn.GELU(), torch.nn.Linear(64, 6)
        ).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        limit_gradients(self.model, 0.5)
        self.x = torch.randn(64, 16).to(device)
        self.y = torch.randint(6, (64,)).to(device)

    def step(self):
        self.optimizer.zero_grad()
        with self.arm.autocast():
            loss = F.cross_entropy(self.model(self.x), self.y)
        self.arm.scaler.scale(loss).backward()
        self.arm.scaler.step(self.optimizer)
        self.arm.scaler.update()
        return loss


@pytest.mark.amp(dtype="float16")
def test_hooked(amp_benchmark, amp_device):
    amp_benchmark(lambda arm: Trainer(arm, amp_device).step)
