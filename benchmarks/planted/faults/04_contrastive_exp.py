"""A contrastive loss exponentiates similarities over a temperature of 0.05, which is inf in
float16; use cross entropy or logsumexp in float32.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ("AMP301",)


class Projector(nn.Module):
    def __init__(self, width=32, dim=16):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(20, width), nn.ReLU())
        self.head = nn.Linear(width, dim)

    def forward(self, x):
        return F.normalize(self.head(self.backbone(x)), dim=-1)


def nt_xent(first, second, temperature=0.05):
    z = torch.cat([first, second])
    similarity = torch.exp(z @ z.t() / temperature)  # <- here
    others = 1 - torch.eye(len(z), device=z.device, dtype=similarity.dtype)
    denominator = (similarity * others).sum(dim=-1)  # <- here
    positive = torch.cat([similarity.diag(len(first)), similarity.diag(-len(first))])
    return -torch.log(positive / denominator).mean()


@pytest.mark.amp(dtype="float16")
def test_contrastive(amp_benchmark):
    def setup(arm):
        model = Projector().to(arm.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
        x = torch.randn(32, 20).to(arm.device)
        views = x + 0.1 * torch.randn_like(x), x + 0.1 * torch.randn_like(x)

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = nt_xent(model(views[0]), model(views[1]))
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
