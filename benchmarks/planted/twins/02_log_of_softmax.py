"""A distillation loss takes log_softmax of float32 logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ()

TEMPERATURE = 0.05


def distillation(student_logits, teacher):
    student = F.log_softmax(student_logits.float() / TEMPERATURE, dim=-1)
    divergence = (teacher * (teacher.log() - student)).sum(-1)
    return TEMPERATURE**2 * divergence.mean()


@pytest.fixture
def model(amp_device):
    return nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 40)).to(amp_device)


@pytest.fixture
def optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


@pytest.fixture
def batch(amp_device):
    inputs = 2 * torch.randn(64, 24)
    teacher = F.softmax(inputs @ torch.randn(24, 40) / 4, dim=-1)
    return inputs.to(amp_device), teacher.to(amp_device)


@pytest.mark.amp(dtype="float16")
def test_distillation(model, optimizer, batch):
    inputs, teacher = batch
    return distillation(model(inputs), teacher)
