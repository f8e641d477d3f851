"""Lengths are counted in the dtype of the hidden states, and bfloat16 has no odd number above
256, so the last token is missed; count in integers.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ("AMP304", "loss gate")


class RewardModel(nn.Module):
    def __init__(self, words=30, dim=32):
        super().__init__()
        self.embed = nn.Embedding(words, dim, padding_idx=0)
        self.hidden, self.value = nn.Linear(dim, dim), nn.Linear(dim, 1)

    def forward(self, tokens):
        hidden = torch.tanh(self.hidden(self.embed(tokens)))
        mask = (tokens != 0).to(hidden.dtype)  # <- here
        last = mask.sum(dim=1).long() - 1  # <- here
        pooled = hidden[torch.arange(len(tokens), device=tokens.device), last]  # <- here
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
