"""A face embedding is normalised in float32."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ()


def l2_normalize(features):
    features = features.float()
    norm = features.pow(2).sum(dim=1, keepdim=True).sqrt()
    return features / (norm + 1e-6)


class FaceNet(nn.Module):
    def __init__(self, identities=12):
        super().__init__()
        self.backbone = nn.Linear(64, 48)
        self.centers = nn.Parameter(torch.randn(identities, 48))

    def forward(self, pixels):
        embedding = l2_normalize(self.backbone(pixels))
        return 16 * F.linear(embedding, F.normalize(self.centers, dim=1))


@pytest.fixture
def model(amp_device):
    return FaceNet().to(amp_device)


@pytest.fixture
def optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-4)


@pytest.fixture
def batch(amp_device):
    identity = torch.arange(48) % 12
    pixels = (torch.rand(12, 64)[identity] * 200 + torch.rand(48, 64) * 55).round()
    return pixels.to(amp_device), identity.to(amp_device)


@pytest.mark.amp(dtype="float16")
def test_face_embedding(model, optimizer, batch):
    pixels, identity = batch
    return F.cross_entropy(model(pixels), identity)
