"""A distillation loss takes the log of a softmax that underflows to 0 in float16; use log_softmax
in float32.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ("AMP301",)

TEMPERATURE = 0.05


def distillation(student_logits, teacher):
    student = F.softmax(student_logits / TEMPERATURE, dim=-1)  # <- here
    divergence = (teacher * (teacher.log() - student.log())).sum(-1)  # <- here
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
