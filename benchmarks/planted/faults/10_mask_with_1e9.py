"""Attention scores are filled with -1e9, which float16 can't hold, so masked_fill raises; use
torch.finfo(scores.dtype).min.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ("AMP109",)


class SelfAttention(nn.Module):
    def __init__(self, dim=32, heads=4):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x, padding):
        batch, length, dim = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / (dim // self.heads) ** 0.5
        scores = scores.masked_fill(padding[:, None, None], -1e9)  # <- here
        context = torch.softmax(scores, dim=-1) @ v
        return self.out(context.transpose(1, 2).reshape(batch, length, dim))


class Tagger(nn.Module):
    def __init__(self, tags=5):
        super().__init__()
        self.embed, self.attention = nn.Embedding(40, 32), SelfAttention()
        self.head = nn.Linear(32, tags)

    def forward(self, tokens, padding):
        return self.head(F.relu(self.attention(self.embed(tokens), padding)))


@pytest.mark.amp(dtype="float16")
def test_tagger(amp_benchmark):
    def setup(arm):
        model = Tagger().to(arm.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        tokens = torch.randint(40, (8, 12)).to(arm.device)
        lengths = torch.randint(5, 13, (8,)).to(arm.device)
        padding = torch.arange(12, device=arm.device) >= lengths[:, None]
        tags = (tokens % 5).masked_fill(padding, -100)

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                logits = model(tokens, padding)
                loss = F.cross_entropy(logits.flatten(0, 1).float(), tags.flatten())
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
