"""A cosine similarity pools and normalises in float32."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ()

PADDING = 0


class FieldEncoder(nn.Module):
    def __init__(self, words=60, dim=16):
        super().__init__()
        self.embed, self.project = nn.Embedding(words, dim), nn.Linear(dim, dim)

    def forward(self, words):
        mask = (words != PADDING).unsqueeze(-1)
        hidden = torch.tanh(self.project(self.embed(words)))
        return (hidden.float() * mask.float()).sum(1)


def cosine(a, b, eps=1e-8):
    a = a / a.norm(dim=-1, keepdim=True).clamp(min=eps)
    b = b / b.norm(dim=-1, keepdim=True).clamp(min=eps)
    return (a * b).sum(-1)


@pytest.mark.amp(dtype="float16")
def test_matching(amp_benchmark):
    def setup(arm):
        titles, bodies = FieldEncoder().to(arm.device), FieldEncoder().to(arm.device)
        optimizer = torch.optim.Adam([*titles.parameters(), *bodies.parameters()], lr=1e-3)
        title, body = torch.randint(1, 60, (32, 6)), torch.randint(1, 60, (32, 12))
        title[5] = PADDING  # nobody wrote one
        title, body = title.to(arm.device), body.to(arm.device)
        matches = torch.randint(2, (32,)).float().to(arm.device)

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                score = cosine(titles(title), bodies(body))
                loss = F.mse_loss(score.float(), matches)
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
