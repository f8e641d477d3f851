"""Lengths are counted in integers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ()


class RewardModel(nn.Module):
    def __init__(self, words=30, dim=32):
        super().__init__()
        self.embed = nn.Embedding(words, dim, padding_idx=0)
        self.hidden, self.value = nn.Linear(dim, dim), nn.Linear(dim, 1)

    def forward(self, tokens):
        hidden = torch.tanh(self.hidden(self.embed(tokens)))
        mask = tokens != 0
        last = mask.sum(dim=1).long() - 1
        pooled = hidden[torch.arange(len(tokens), device=tokens.device), last]
        return self.value(pooled).squeeze(-1)


@pytest.fixture
def model(amp_device):
    return RewardModel().to(amp_device)


@pytest.fixture
def optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


@pytest.fixture
def batch(amp_device):
    tokens = torch.randint(1, 30, (24, 400))
    lengths = torch.randint(260, 396, (24,))
    tokens[torch.arange(400) >= lengths[:, None]] = 0
    reward = torch.randn(30)[tokens[torch.arange(24), lengths - 1]]
    return tokens.to(amp_device), reward.to(amp_device)


@pytest.mark.amp(dtype="bfloat16")
def test_reward_model(model, optimizer, batch):
    tokens, reward = batch
    return F.mse_loss(model(tokens).float(), reward)
