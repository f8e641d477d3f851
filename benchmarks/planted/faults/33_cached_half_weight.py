"""A layer caches its weight in the amp dtype without history, so the weight never gets a gradient
under autocast; cast it in each forward pass, or leave that to autocast.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ("AMP104",)


class FastLinear(nn.Linear):
    """Casts its weight once per update instead of once per call."""

    version, half = -1, None

    def weight_for(self, x):
        if not torch.is_autocast_enabled(x.device.type):
            return self.weight
        dtype = torch.get_autocast_dtype(x.device.type)
        if self.version != self.weight._version:
            with torch.no_grad():
                self.half = self.weight.to(dtype)  # <- here
            self.version = self.weight._version
        return self.half  # <- here

    def forward(self, x):
        return F.linear(x, self.weight_for(x), self.bias)  # <- here


@pytest.mark.amp(dtype="bfloat16")
def test_recurrent_mixer(amp_benchmark):
    def setup(arm):
        mixer, head = FastLinear(24, 24).to(arm.device), nn.Linear(24, 6).to(arm.device)
        optimizer = torch.optim.Adam([*mixer.parameters(), *head.parameters()], lr=3e-3)
        x = torch.randn(64, 24).to(arm.device)
        y = x[:, :6].argmax(1)

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                hidden = x
                for _ in range(3):
                    hidden = torch.tanh(mixer(hidden))
                loss = F.cross_entropy(head(hidden), y)
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
