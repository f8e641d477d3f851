"""A click model takes the log of probabilities that bfloat16 has rounded to 1, so the loss is
inf; use binary_cross_entropy_with_logits on the logits.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ("AMP301",)


class TwoTowers(nn.Module):
    def __init__(self, users=64, items=96, dim=8):
        super().__init__()
        self.users, self.items = nn.Embedding(users, 32), nn.Embedding(items, 32)
        self.user_tower, self.item_tower = nn.Linear(32, dim), nn.Linear(32, dim)
        self.scale = nn.Parameter(torch.tensor(12.0))

    def forward(self, user, item):
        left = F.normalize(self.user_tower(self.users(user)), dim=-1)
        right = F.normalize(self.item_tower(self.items(item)), dim=-1)
        return torch.sigmoid(self.scale * (left * right).sum(-1))  # <- here


def click_loss(probability, clicked):
    probability = probability.clamp(1e-7, 1 - 1e-7)  # <- here
    hit, miss = torch.log(probability), torch.log(1 - probability)  # <- here
    return -(clicked * hit + (1 - clicked) * miss).mean()  # <- here


@pytest.fixture
def model(amp_device):
    return TwoTowers().to(amp_device)


@pytest.fixture
def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.05)


@pytest.fixture
def batch(amp_device):
    user, item = torch.randint(64, (256,)), torch.randint(96, (256,))
    clicked = ((user + item) % 3 == 0).float()
    return user.to(amp_device), item.to(amp_device), clicked.to(amp_device)


@pytest.mark.amp(dtype="bfloat16")
def test_click_model(model, optimizer, batch):
    user, item, clicked = batch
    return click_loss(model(user, item), clicked)
