"""In bfloat16 the columns beyond 256 are even numbers, so the warped image is off by a pixel;
coordinates have to be in float32."""

import pytest
import torch
import torch.nn.functional as F

EXPECT = ("AMP304", "loss gate")


def warp(image, disparity):
    height, width = image.shape[-2:]
    columns = torch.arange(width, device=image.device, dtype=disparity.dtype)  # <- here
    x = columns - disparity.squeeze(1)  # <- here
    x = 2 * x / (width - 1) - 1  # <- here
    y = torch.linspace(-1, 1, height, device=image.device, dtype=x.dtype)[:, None].expand_as(x)
    grid = torch.stack([x, y], dim=-1)
    return F.grid_sample(image.to(grid.dtype), grid, align_corners=True, padding_mode="border")


class Stereo(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(2, 8, 5, padding=2),
            torch.nn.ReLU(),
            torch.nn.Conv2d(8, 1, 3, padding=1),
        )

    def forward(self, left, right):
        return self.layers(torch.cat([left, right], dim=1))


@pytest.mark.amp(dtype="bfloat16")
def test_stereo(amp_benchmark, amp_device):
    def setup(arm):
        net = Stereo().to(amp_device)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
        left = torch.randn(2, 1, 8, 512).to(amp_device)
        right = left.roll(-1, dims=-1)

        def photometric_loss():
            return (warp(right, 1 + net(left, right)).float() - left).abs().mean()

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = photometric_loss()
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
