"""A dice loss sums float32 probabilities."""

import pytest
import torch
from torch import nn

EXPECT = ()


class PointSegmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, points):
        return self.layers(points).squeeze(-1)


class DiceLoss(nn.Module):
    def __init__(self, smooth=1.0):
        super().__init__()
        self.smooth = smooth

    def forward(self, logits, target):
        probability = torch.sigmoid(logits.float())
        target = target.to(probability.dtype)
        intersection = (probability * target).sum()
        total = probability.sum() + target.sum()
        return 1 - (2 * intersection + self.smooth) / (total + self.smooth)


@pytest.fixture
def model(amp_device):
    return PointSegmenter().to(amp_device)


@pytest.fixture
def optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=5e-3)


@pytest.fixture
def batch(amp_device):
    points = torch.randn(4, 40_000, 6)
    inside = points[..., :3].norm(dim=-1) < 1.2
    return points.to(amp_device), inside.to(amp_device)


@pytest.mark.amp(dtype="float16")
def test_segmentation(model, optimizer, batch):
    points, inside = batch
    return DiceLoss()(model(points), inside)
