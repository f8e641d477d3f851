"""Rotary phases are a matrix product, which autocast runs in bfloat16 although its operands were
cast to float32, so positions collide; switch autocast off around it.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ("AMP304", "loss gate")

IMAGE_OFFSET = 4096  # text comes first


class Rotary(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / 100 ** (torch.arange(0, dim, 2) / dim))

    def forward(self, positions):
        phases = positions.float()[:, None] @ self.inv_freq.float()[None]  # <- here
        phases = torch.cat([phases, phases], dim=-1)
        return phases.cos(), phases.sin()


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class PatchMixer(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.rotary = Rotary(dim)
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.out = nn.Linear(dim, dim)

    def forward(self, x, positions):
        cos, sin = self.rotary(positions)
        q, k = rotate(self.q(x), cos, sin), rotate(self.k(x), cos, sin)
        weights = torch.softmax(2 * q @ k.transpose(1, 2), dim=-1)
        return self.out(weights @ self.v(x))


@pytest.mark.amp(dtype="bfloat16")
def test_patch_mixer(amp_benchmark):
    def setup(arm):
        model = PatchMixer().to(arm.device)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        x = torch.randn(16, 24, 16).to(arm.device) + 1
        target = x.roll(1, dims=1)
        positions = IMAGE_OFFSET + torch.arange(24, device=arm.device)

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.mse_loss(model(x, positions).float(), target)
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
