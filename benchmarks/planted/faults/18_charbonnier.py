"""A Charbonnier loss guards its root with 1e-12, which is 0 in float16, so its gradient is NaN
wherever the prediction is exact; compute it in float32.
"""

import pytest
import torch
from torch import nn

EXPECT = ("AMP207",)


class Upscaler(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(9, width), nn.ReLU(), nn.Linear(width, 4))

    def forward(self, patches):
        return torch.relu(self.body(patches))


def charbonnier(prediction, target, eps=1e-12):
    difference = prediction - target.to(prediction.dtype)
    return torch.sqrt(difference * difference + eps).mean()  # <- here


@pytest.fixture
def model(amp_device):
    return Upscaler().to(amp_device)


@pytest.fixture
def optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-3)


@pytest.fixture
def batch(amp_device):
    patches = torch.rand(128, 9)
    fine = patches[:, [0, 2, 6, 8]].clone()
    fine[patches.mean(1) < 0.5] = 0.0  # black background
    return patches.to(amp_device), fine.to(amp_device)


@pytest.mark.amp(dtype="float16")
def test_upscaler(model, optimizer, batch):
    patches, fine = batch
    return charbonnier(model(patches), fine)
