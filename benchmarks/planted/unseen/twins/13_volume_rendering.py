"""The opacity is computed by expm1, and the sum of depths is kept in float32."""

import pytest
import torch
import torch.nn.functional as F

EXPECT = ()


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
        depth = density.float() * spacing
        alpha = -torch.expm1(-depth)
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
