"""The loss scale doubles after every step, so every other step overflows and is skipped; leave
growth_interval at 2000.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ("AMP207",)


class Upsampler(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 64), nn.SiLU(), nn.Linear(64, 32))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.amp(dtype="float16")
def test_own_scaler(amp_benchmark):
    def setup(arm):
        model = Upsampler().to(arm.device)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler(
            arm.device.type,
            growth_interval=1,
            enabled=arm.dtype == torch.float16,  # <- here
        )
        x = torch.randn(64, 16).to(arm.device)
        y = x.repeat(1, 2).cos()

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.mse_loss(model(x).float(), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            return loss

        return step

    amp_benchmark(setup)
