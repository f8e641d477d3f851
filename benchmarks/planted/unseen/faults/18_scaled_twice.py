"""The loss is scaled where it is computed and again where backward is called, so what is left after
unscale_ is still scaled; it has to be scaled once."""

import pytest
import torch
import torch.nn.functional as F

EXPECT = ("AMP203", "AMP208", "loss gate")


class Trainer:
    def __init__(self, arm, device):
        self.arm = arm
        self.model = torch.nn.Sequential(
            torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 6)
        ).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.x = torch.randn(64, 16).to(device)
        self.y = torch.randint(6, (64,)).to(device)

    def training_step(self):
        with self.arm.autocast():
            loss = F.cross_entropy(self.model(self.x), self.y)
        return loss, self.arm.scaler.scale(loss)  # <- here

    def backward(self, loss):
        self.arm.scaler.scale(loss).backward()  # <- here

    def step(self):
        self.optimizer.zero_grad()
        loss, objective = self.training_step()
        self.backward(objective)
        self.arm.scaler.step(self.optimizer)
        self.arm.scaler.update()
        return loss


@pytest.mark.amp(dtype="float16")
def test_trainer(amp_benchmark, amp_device):
    amp_benchmark(lambda arm: Trainer(arm, amp_device).step)
