"""A normalisation over time computes the variance as E[x^2] - E[x]^2 in bfloat16, which cancels;
compute it in float32 (or with var()).
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ("AMP304", "loss gate")


class TemporalNorm(nn.Module):
    def __init__(self, channels, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x):  # batch, time, channels
        mean = x.mean(dim=1, keepdim=True)
        variance = (x * x).mean(dim=1, keepdim=True) - mean * mean  # <- here
        scale = torch.rsqrt(variance.clamp(min=0) + self.eps)  # <- here
        return (x - mean) * scale * self.weight + self.bias


class Forecaster(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Linear(8, 32), TemporalNorm(32)
        self.head = nn.Linear(32, 8)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.embed(x))))


@pytest.fixture
def model(amp_device):
    return Forecaster().to(amp_device)


@pytest.fixture
def optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


@pytest.fixture
def batch(amp_device):
    energy = 5 + torch.randn(8, 48, 8)  # log energies
    return energy[:, :-1].to(amp_device), (energy[:, :-1] - 5).tanh().to(amp_device)


@pytest.mark.amp(dtype="bfloat16")
def test_forecaster(model, optimizer, batch):
    past, target = batch
    return F.mse_loss(model(past).float(), target)
