"""A running second moment squares activations of several hundred in float16, and stays inf from
then on; square them in float32.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ("AMP306",)


class ActivationStatistics(nn.Module):
    """Second moments per channel, for pruning after the training."""

    def __init__(self, channels, momentum=0.1):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("second", torch.ones(channels))

    @torch.no_grad()
    def observe(self, hidden):
        moment = hidden.pow(2).mean(dim=0)  # <- here
        self.second.mul_(1 - self.momentum).add_(moment, alpha=self.momentum)  # <- here


class PixelNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.statistics = nn.Linear(27, 32), ActivationStatistics(32)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 5)

    def forward(self, pixels):
        hidden = self.stem(pixels)
        self.statistics.observe(hidden)
        return self.head(F.relu(self.norm(hidden)))


@pytest.mark.amp(dtype="float16")
def test_pixels(amp_benchmark):
    def setup(arm):
        model = PixelNet().to(arm.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        pixels = torch.randint(256, (64, 27)).float()
        pixels[:8] += 600  # a few overexposed ones, in raw units
        labels = (pixels.argmax(1) % 5).to(arm.device)
        pixels = pixels.to(arm.device)

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.cross_entropy(model(pixels), labels)
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
