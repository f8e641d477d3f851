"""A step that gains on any machine: large pointwise operations behind a small linear layer.

Half the bytes take half the memory and about half the time to move, also on a CPU. The memory
gate is tight, since bytes are counted; the speed gate is loose, since it holds on any machine.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn


@pytest.fixture
def model(amp_device):
    torch.manual_seed(0)
    return nn.Linear(1, 256).to(amp_device)


@pytest.fixture
def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.fixture
def batch(amp_device):
    x = torch.linspace(-1, 1, 32768).unsqueeze(1).to(amp_device)
    return x, torch.sin(3 * x.squeeze(1))


@pytest.mark.amp(dtype="bfloat16", min_speedup=1.1, min_memory_reduction=0.4, steps=10)
def test_pointwise(model, optimizer, batch):
    x, target = batch
    h = model(x)
    for _ in range(10):
        h = F.leaky_relu(h, 0.97)
    return F.mse_loss(h.float().mean(1), target)
