"""The features are scaled before they are multiplied."""

import math

import pytest
import torch
import torch.nn.functional as F

EXPECT = ()


class BilinearNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor(25.0))
        self.conv = torch.nn.Conv2d(3, 12, 3, padding=1)
        self.head = torch.nn.Linear(144, 5)

    def forward(self, images):
        features = F.relu(self.conv(images) * self.scale).flatten(2)
        positions = features.shape[-1]
        features = features / math.sqrt(positions)
        pooled = features @ features.mT
        pooled = (pooled.flatten(1) + 1e-3).sqrt()
        return self.head(F.normalize(pooled.float()))


@pytest.fixture
def model(amp_device):
    return BilinearNet().to(amp_device)


@pytest.fixture
def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.fixture
def batch(amp_device):
    return torch.randn(4, 3, 32, 32).to(amp_device), torch.randint(5, (4,)).to(amp_device)


@pytest.mark.amp(dtype="float16")
def test_textures(model, optimizer, batch):
    images, labels = batch
    return F.cross_entropy(model(images), labels)
