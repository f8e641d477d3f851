"""Weight decay is added to gradients that are still multiplied by the loss scale, so it is
divided away; unscale them first.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ("AMP203",)

DECAY = 0.05


def add_weight_decay(model):
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.grad.add_(module.weight.detach(), alpha=DECAY)  # <- here


@pytest.mark.amp(dtype="float16")
def test_regularised(amp_benchmark):
    def setup(arm):
        model = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 4)).to(arm.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        x = torch.randn(64, 16).to(arm.device)
        y = x[:, :4].argmax(1)

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.cross_entropy(model(x), y)
            arm.scaler.scale(loss).backward()
            add_weight_decay(model)  # <- here
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
