"""The mean and the variance are cast to float32 first."""

import pytest
import torch

EXPECT = ()
UNIT = 1e-4  # metres


class Heteroscedastic(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(12, 64), torch.nn.ReLU())
        self.head = torch.nn.Linear(64, 2)

    def forward(self, x):
        mean, log_var = self.head(self.body(x)).float().chunk(2, dim=-1)
        return UNIT * mean, log_var - 18.4

    def loss(self, x, y):
        mean, log_var = self(x)
        squared = (y.to(mean.dtype) - mean).square()
        return 0.5 * (log_var + squared / log_var.exp()).mean()


@pytest.mark.amp(dtype="float16")
def test_displacements(amp_benchmark, amp_device):
    def setup(arm):
        model = Heteroscedastic().to(amp_device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        x = torch.randn(128, 12).to(amp_device)
        y = UNIT * (x[:, :1] + 0.5 * torch.randn(128, 1).to(amp_device))

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = model.loss(x, y)
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
