"""An additive mask of -1e9 is -inf in float16, so the softmax over an example that is all padding
is NaN; add a finite number such as -1e4.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ("AMP301",)

MASKED = -1e9


class SlotReader(nn.Module):
    """Reads the history of each slot; a slot without any is all padding."""

    def __init__(self, dim=24):
        super().__init__()
        self.embed, self.query = nn.Embedding(50, dim), nn.Linear(dim, dim)
        self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.head = nn.Linear(dim, 3)

    def forward(self, slot, history, present):
        query = self.query(self.embed(slot)).unsqueeze(1)
        words = self.embed(history)
        scores = query @ self.key(words).transpose(1, 2) / words.shape[-1] ** 0.5
        scores = scores + (1 - present.to(scores.dtype)).unsqueeze(1) * MASKED  # <- here
        weights = torch.softmax(scores, dim=-1)  # <- here
        return self.head((weights @ self.value(words)).squeeze(1))


def slot_loss(logits, labels, present):
    used = present.any(1).float()
    return (F.cross_entropy(logits.float(), labels, reduction="none") * used).sum() / used.sum()


@pytest.mark.amp(dtype="float16")
def test_slots(amp_benchmark):
    def setup(arm):
        model = SlotReader().to(arm.device)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        slot, history = torch.randint(50, (16,)), torch.randint(50, (16, 10))
        present = torch.arange(10) < torch.randint(1, 11, (16, 1))
        present[3] = False
        labels = (slot + history[:, 0]) % 3
        data = [each.to(arm.device) for each in (slot, history, present, labels)]

        def step():
            slot, history, present, labels = data
            optimizer.zero_grad()
            with arm.autocast():
                loss = slot_loss(model(slot, history, present), labels, present)
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
