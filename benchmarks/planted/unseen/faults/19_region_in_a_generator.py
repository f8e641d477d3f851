"""A generator that yields inside of its region leaves autocast on in the code that consumes it, so
the loss is computed in bfloat16 as well; the region has to end before the yield."""

import pytest
import torch
import torch.nn.functional as F

EXPECT = ("AMP105", "AMP304")


class ContrastiveTrainer:
    def __init__(self, arm, device):
        self.arm = arm
        self.encoder = torch.nn.Sequential(
            torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32)
        ).to(device)
        self.optimizer = torch.optim.SGD(self.encoder.parameters(), lr=0.01)
        self.first = torch.randn(128, 16).to(device)
        self.second = self.first + 1.0 * torch.randn(128, 16).to(device)

    def embeddings(self):
        for first, second in zip(self.first.split(64), self.second.split(64), strict=True):
            with self.arm.autocast():  # <- here
                pair = self.encoder(first), self.encoder(second)
                yield pair  # <- here

    def loss(self, first, second):
        first, second = F.normalize(first.float(), dim=-1), F.normalize(second.float(), dim=-1)
        similarity = first @ second.mT / 0.01  # <- here
        return F.cross_entropy(similarity, torch.arange(len(first), device=first.device))

    def step(self):
        total = 0.0
        self.optimizer.zero_grad()
        for first, second in self.embeddings():
            loss = self.loss(first, second) / 2
            self.arm.scaler.scale(loss).backward()  # <- here
            total += loss.detach()
        self.arm.scaler.step(self.optimizer)
        self.arm.scaler.update()
        return total


@pytest.mark.amp(dtype="bfloat16")
def test_contrastive(amp_benchmark, amp_device):
    amp_benchmark(lambda arm: ContrastiveTrainer(arm, amp_device).step)
