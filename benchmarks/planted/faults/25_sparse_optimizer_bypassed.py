"""The optimizer of the sparse embeddings is stepped without the GradScaler, on gradients that are
still multiplied by the loss scale; use scaler.step for it too.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ("AMP208",)


class DLRM(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(100, 16, sparse=True)
        self.bottom, self.top = nn.Linear(10, 16), nn.Linear(32, 1)

    def forward(self, dense, category):
        hidden = torch.relu(self.bottom(dense))
        return self.top(torch.cat([hidden, self.table(category)], dim=1)).squeeze(1)


class RecommenderTrainer:
    def __init__(self, arm):
        self.arm, self.model = arm, DLRM().to(arm.device)
        dense = [*self.model.bottom.parameters(), *self.model.top.parameters()]
        self.dense_optimizer = torch.optim.AdamW(dense, lr=1e-3)
        self.sparse_optimizer = torch.optim.SparseAdam(self.model.table.parameters(), lr=1e-3)
        self.dense = torch.randn(64, 10).to(arm.device)
        self.category = torch.randint(100, (64,)).to(arm.device)
        self.clicked = (self.category % 2).float()

    def zero_grad(self):
        self.dense_optimizer.zero_grad()
        self.sparse_optimizer.zero_grad()

    def train_batch(self):
        self.zero_grad()
        with self.arm.autocast():
            logits = self.model(self.dense, self.category)
            loss = F.binary_cross_entropy_with_logits(logits.float(), self.clicked)
        self.arm.scaler.scale(loss).backward()
        self.arm.scaler.step(self.dense_optimizer)
        self.sparse_optimizer.step()  # <- here
        self.arm.scaler.update()
        return loss.detach()


@pytest.mark.amp(dtype="float16")
def test_recommender(amp_benchmark):
    amp_benchmark(lambda arm: RecommenderTrainer(arm).train_batch)
