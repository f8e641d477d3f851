"""In bfloat16 one minus the exponential of a small optical depth is zero, so thin fog is invisible;
it has to be computed by expm1, or in float32."""

import pytest
import torch
import torch.nn.functional as F

EXPECT = ("AMP304", "loss gate")


class Field(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(3, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)
        )

    def forward(self, points):
        raw = self.layers(points)
        return torch.sigmoid(raw[..., :3]), F.softplus(raw[..., 3] - 1.5)

    def render(self, points, spacing):
        colour, density = self(points)
        depth = density * spacing
        alpha = 1 - torch.exp(-depth)  # <- here
        light = torch.exp(-(depth.cumsum(-1) - depth))
        return ((alpha * light)[..., None] * colour).sum(-2)


@pytest.fixture
def field(amp_device):
    return Field().to(amp_device)


@pytest.fixture
def optimizer(field):
    return torch.optim.AdamW(field.parameters(), lr=1e-4)


@pytest.fixture
def rays(amp_device):
    points = torch.rand(16, 256, 3)
    return points.to(amp_device), torch.full((16, 3), 0.6).to(amp_device)


@pytest.mark.amp(dtype="bfloat16")
def test_rendering(field, optimizer, rays):
    points, pixels = rays
    return F.mse_loss(field.render(points, spacing=1 / 128), pixels)
