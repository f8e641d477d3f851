"""Distances are taken from differences of float32 coordinates."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ()


class Refiner(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(12, 32), nn.SiLU(), nn.Linear(32, 3))

    def forward(self, features, backbone):
        return backbone + self.layers(features)


def pairwise_distances(a, b):
    return (a[:, None] - b[None]).pow(2).sum(-1).sqrt()


@pytest.fixture
def model(amp_device):
    return Refiner().to(amp_device)


@pytest.fixture
def optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


@pytest.fixture
def complex_(amp_device):
    chain = 30 + 3 * torch.randn(20, 3)
    partner = chain + torch.tensor([0.0, 0.0, 4.0]) + 0.5 * torch.randn(20, 3)
    return {
        "features": torch.randn(20, 12).to(amp_device),
        "chain": chain.to(amp_device),
        "partner": partner.to(amp_device),
        "distances": (5 + 5 * torch.rand(20, 20)).to(amp_device),
    }


@pytest.mark.amp(dtype="bfloat16")
def test_docking(model, optimizer, complex_):
    coordinates = model(complex_["features"], complex_["chain"])
    distances = pairwise_distances(coordinates, complex_["partner"])
    return F.smooth_l1_loss(distances, complex_["distances"])
