"""Timesteps are embedded in float32, and the embedding is cast."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ()


def timestep_embedding(timesteps, dim, dtype):
    exponents = torch.arange(dim // 2) / (dim // 2)
    frequencies = torch.exp(-math.log(1e4) * exponents)
    phases = timesteps.float()[:, None] * frequencies[None]
    return torch.cat([phases.sin(), phases.cos()], dim=-1).to(dtype)


class Denoiser(nn.Module):
    def __init__(self, width=48):
        super().__init__()
        self.inputs, self.time = nn.Linear(16, width), nn.Linear(32, width)
        self.outputs = nn.Sequential(nn.SiLU(), nn.Linear(width, 16))

    def forward(self, noisy, timesteps):
        hidden = self.inputs(noisy)
        embedding = timestep_embedding(timesteps, 32, hidden.dtype)
        return self.outputs(hidden + self.time(embedding))


@pytest.mark.amp(dtype="bfloat16")
def test_denoiser(amp_benchmark):
    def setup(arm):
        model = Denoiser().to(arm.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        clean, noise = torch.randn(64, 16).to(arm.device), torch.randn(64, 16).to(arm.device)
        timesteps = torch.randint(1000, (64,)).to(arm.device)
        kept = torch.cos(timesteps / 1000 * math.pi / 2)[:, None]
        noisy = kept * clean + (1 - kept**2).sqrt() * noise

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.mse_loss(model(noisy, timesteps).float(), noise)
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
