"""The model runs inside of the region, and its small loss outside."""

import pytest
import torch
import torch.nn.functional as F

EXPECT = ()


class PrototypeLoss(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.prototypes = torch.nn.Parameter(torch.randn(8, 32) / 6)

    def forward(self, embedding, labels):
        return F.cross_entropy(F.linear(embedding, self.prototypes), labels)


class Trainer:
    def __init__(self, arm, device):
        self.arm = arm
        self.model = torch.nn.Sequential(
            torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 32)
        ).to(device)
        self.criterion = PrototypeLoss().to(device)
        parameters = [*self.model.parameters(), *self.criterion.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-3)
        self.x = torch.randn(128, 64).to(device)
        self.labels = torch.randint(8, (128,)).to(device)

    def step(self):
        self.optimizer.zero_grad()
        with self.arm.autocast():
            embedding = self.model(self.x)
        loss = self.criterion(embedding.float(), self.labels)
        self.arm.scaler.scale(loss).backward()
        self.arm.scaler.step(self.optimizer)
        self.arm.scaler.update()
        return loss


@pytest.mark.amp(dtype="bfloat16")
def test_prototypes(amp_benchmark, amp_device):
    amp_benchmark(lambda arm: Trainer(arm, amp_device).step)
