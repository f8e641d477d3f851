"""Durations are summed up in float32."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ()


class DurationUpsampler(nn.Module):
    def __init__(self, dim=24, mels=8):
        super().__init__()
        self.embed, self.hidden = nn.Embedding(30, dim), nn.Linear(dim, dim)
        self.duration, self.mel = nn.Linear(dim, 1), nn.Linear(dim, mels)
        nn.init.constant_(self.duration.bias, 4.0)

    def forward(self, tokens, frames):
        hidden = torch.tanh(self.hidden(self.embed(tokens)))
        with torch.autocast(tokens.device.type, enabled=False):
            durations = F.softplus(self.duration(hidden.float())).squeeze(-1)
        ends = torch.cumsum(durations, dim=-1)
        centers = ends - durations / 2
        frame = torch.arange(frames, device=tokens.device) + 0.5
        energy = -0.05 * (frame[None, :, None] - centers[:, None]).pow(2)
        weights = torch.softmax(energy, dim=-1)
        return self.mel(weights.to(hidden.dtype) @ hidden)


@pytest.fixture
def model(amp_device):
    return DurationUpsampler().to(amp_device)


@pytest.fixture
def optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


@pytest.fixture
def batch(amp_device):
    tokens = torch.randint(30, (2, 150))
    mel = torch.randn(30, 8)[tokens].repeat_interleave(4, dim=1)
    return tokens.to(amp_device), mel.to(amp_device)


@pytest.mark.amp(dtype="bfloat16")
def test_upsampler(model, optimizer, batch):
    tokens, mel = batch
    return F.l1_loss(model(tokens, mel.shape[1]).float(), mel)
