"""A step with a norm that is not finite returns before scaler.update(), so the next unscale_
raises; call step() and update() on every path.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ("AMP204", "AMP207")


class ViewSynthesis(nn.Module):
    def __init__(self):
        super().__init__()
        self.rays = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.color = nn.Linear(32, 3)

    def forward(self, rays):
        return torch.sigmoid(self.color(self.rays(rays)))


@pytest.mark.amp(dtype="float16")
def test_view_synthesis(amp_benchmark):
    def setup(arm):
        model = ViewSynthesis().to(arm.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        rays, colors = torch.randn(128, 6).to(arm.device), torch.rand(128, 3).to(arm.device)
        skipped = []

        def step():
            optimizer.zero_grad(set_to_none=True)
            with arm.autocast():
                loss = F.mse_loss(model(rays).float(), colors)
            arm.scaler.scale(loss).backward()
            arm.scaler.unscale_(optimizer)  # <- here
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if not torch.isfinite(norm):
                skipped.append(float(norm))
                return loss  # <- here
            arm.scaler.step(optimizer)
            arm.scaler.update()  # <- here
            return loss

        return step

    amp_benchmark(setup)
