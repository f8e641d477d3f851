"""The test's body is the forward pass and the loss of a small CNN on handwritten digits."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn


@pytest.fixture
def model(amp_device):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 10),
    ).to(amp_device)


@pytest.fixture
def optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


@pytest.fixture
def batch(amp_device):
    digits = load_digits()
    images = torch.tensor(digits.images[:64], dtype=torch.float32)[:, None] / 16
    return images.to(amp_device), torch.tensor(digits.target[:64]).to(amp_device)


@pytest.mark.amp(min_speedup={"cuda": 1.0}, max_loss_diff=0.05, min_coverage=0.9, max_time=10)
def test_digits_cnn(model, optimizer, batch):
    images, labels = batch
    return F.cross_entropy(model(images), labels)
