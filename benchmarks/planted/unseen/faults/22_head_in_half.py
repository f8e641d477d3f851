"""A new head is made in the amp dtype and trained there, where small updates are lost; what is
trained has to be float32."""

import pytest
import torch
import torch.nn.functional as F

EXPECT = ("AMP102", "AMP307")


class FineTuned(torch.nn.Module):
    def __init__(self, backbone, dtype):
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.head = torch.nn.Linear(64, 5, dtype=dtype)  # <- here

    def forward(self, x):
        return self.head(self.backbone(x))


@pytest.mark.amp(dtype="bfloat16")
def test_fine_tuning(amp_benchmark, amp_device):
    def setup(arm):
        backbone = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU())
        model = FineTuned(backbone, arm.dtype).to(amp_device)
        optimizer = torch.optim.AdamW(model.head.parameters(), lr=1e-4)
        x = torch.randn(64, 32).to(amp_device)
        y = torch.randint(5, (64,)).to(amp_device)

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.cross_entropy(model(x).float(), y)
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
