"""The same distances are taken in float32, where 1e-12 is a floor."""

import pytest
import torch
import torch.nn.functional as F

EXPECT = ()


class TripletLoss:
    def __init__(self, margin):
        self.margin = margin

    def distance(self, left, right):
        return (left.float() - right.float()).pow(2).sum(-1).clamp_min(1e-12).sqrt()

    def __call__(self, anchor, positive, negative):
        gap = self.distance(anchor, positive) - self.distance(anchor, negative)
        return F.relu(gap + self.margin).mean()


@pytest.mark.amp(dtype="float16")
def test_embedding(amp_benchmark, amp_device):
    def setup(arm):
        encoder = torch.nn.Sequential(
            torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 16)
        ).to(amp_device)
        optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
        criterion = TripletLoss(1.0)
        anchors, negatives = torch.randn(2, 64, 32).to(amp_device)
        positives = anchors + 0.9 * torch.randn(64, 32).to(amp_device)
        positives[:3] = anchors[:3]  # some pictures are in the data twice

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = criterion(encoder(anchors), encoder(positives), encoder(negatives))
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
