"""Adam gets a larger epsilon under amp, as forum posts advise, so the two arms are trained in
different ways; use one epsilon, the parameters are float32.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ("AMP007",)


def make_optimizer(model, half):
    eps = 1e-4 if half else 1e-8  # <- here
    return torch.optim.AdamW(model.parameters(), lr=1e-3, eps=eps)  # <- here


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(14, 40), nn.Dropout(0.1), nn.GELU(), nn.Linear(40, 6))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.amp(dtype="bfloat16")
def test_classifier(amp_benchmark):
    def setup(arm):
        model = Classifier().to(arm.device)
        optimizer = make_optimizer(model, half=arm.enabled)  # <- here
        x = torch.randn(96, 14).to(arm.device)
        y = x[:, :6].argmax(1)

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.cross_entropy(model(x), y)
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
