"""With a delta of a thousandth the squared ratio passes 65504 for an error of a quarter; the loss
has to be computed in float32."""

import pytest
import torch

EXPECT = ("AMP301",)


def pseudo_huber(prediction, target, delta=1e-3):
    error = prediction - target.to(prediction.dtype)  # <- here
    return (delta * (torch.sqrt(1 + (error / delta) ** 2) - 1)).mean()  # <- here


@pytest.fixture
def model(amp_device):
    return torch.nn.Sequential(torch.nn.Linear(24, 48), torch.nn.GELU(), torch.nn.Linear(48, 2)).to(
        amp_device
    )


@pytest.fixture
def optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


@pytest.fixture
def batch(amp_device):
    x = torch.randn(128, 24).to(amp_device)
    return x, torch.sin(x[:, :2])


@pytest.mark.amp(dtype="float16")
def test_regression(model, optimizer, batch):
    x, y = batch
    return pseudo_huber(model(x), y)
