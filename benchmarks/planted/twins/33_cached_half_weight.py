"""A layer casts its weight in each forward pass, with its history."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ()


class FastLinear(nn.Linear):
    """Casts its weight by itself."""

    def weight_for(self, x):
        if not torch.is_autocast_enabled(x.device.type):
            return self.weight
        dtype = torch.get_autocast_dtype(x.device.type)
        return self.weight.to(dtype)

    def forward(self, x):
        return F.linear(x, self.weight_for(x), self.bias)


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
