"""An average of weights with a decay of 0.9995 is kept in bfloat16, which rounds its updates
away; keep it in float32.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ("AMP307",)


class ModelEma(nn.Module):
    def __init__(self, model, dtype, decay=0.9995):
        super().__init__()
        self.module = copy.deepcopy(model).eval().to(dtype)  # <- here
        self.decay = decay

    @torch.no_grad()
    def update(self, model):
        source = model.state_dict()
        for name, value in self.module.state_dict().items():
            new = source[name].to(value.dtype)
            value.copy_(self.decay * value + (1 - self.decay) * new)  # <- here


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x):
        return x + self.up(F.silu(self.down(x)))


class DiffusionTrainer:
    def __init__(self, arm):
        self.arm, self.model = arm, UNet().to(arm.device)
        self.ema = ModelEma(self.model, arm.dtype)  # <- here
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.clean = torch.randn(64, 16).to(arm.device)
        self.noise = torch.randn(64, 16).to(arm.device)

    def training_step(self):
        self.optimizer.zero_grad()
        with self.arm.autocast():
            loss = F.mse_loss(self.model(self.clean + self.noise).float(), self.noise)
        self.arm.scaler.scale(loss).backward()
        self.arm.scaler.step(self.optimizer)
        self.arm.scaler.update()
        self.ema.update(self.model)
        return loss.detach()


@pytest.mark.amp(dtype="bfloat16")
def test_diffusion(amp_benchmark):
    amp_benchmark(lambda arm: DiffusionTrainer(arm).training_step)
