"""The floor of 1e-9 is zero in float16, so a text without words is 0/0; a count has to be at least
one."""

import pytest
import torch
import torch.nn.functional as F

EXPECT = ("AMP301",)


class TextEncoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(100, 32, padding_idx=0)
        self.mix = torch.nn.Linear(32, 32)
        self.head = torch.nn.Linear(32, 4)

    def pool(self, hidden, mask):
        mask = mask.unsqueeze(-1).to(hidden.dtype)  # <- here
        return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)  # <- here

    def forward(self, tokens):
        hidden = F.gelu(self.mix(self.words(tokens)))
        return self.head(self.pool(hidden, tokens != 0))


@pytest.fixture
def model(amp_device):
    return TextEncoder().to(amp_device)


@pytest.fixture
def optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


@pytest.fixture
def batch(amp_device):
    tokens = torch.randint(1, 100, (32, 12))
    for row, length in enumerate(torch.randint(1, 12, (32,)).tolist()):
        tokens[row, length:] = 0
    tokens[5] = 0  # an empty text
    return tokens.to(amp_device), torch.randint(4, (32,)).to(amp_device)


@pytest.mark.amp(dtype="float16")
def test_texts(model, optimizer, batch):
    tokens, labels = batch
    return F.cross_entropy(model(tokens), labels)
