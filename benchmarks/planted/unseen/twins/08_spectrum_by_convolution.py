"""The same spectrum is squared in float32."""

import math

import pytest
import torch
import torch.nn.functional as F

EXPECT = ()
WINDOW = 512


def fourier_basis():
    time = torch.arange(WINDOW) * (2 * math.pi / WINDOW)
    phase = torch.arange(0, WINDOW // 2, 8)[:, None] * time
    waves = torch.cat([torch.cos(phase), torch.sin(phase)])
    return (waves * torch.hann_window(WINDOW))[:, None]


class Spectrum(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("basis", fourier_basis())

    def forward(self, wave):
        real, imaginary = F.conv1d(wave, self.basis, stride=256).float().chunk(2, dim=1)
        return (real.square() + imaginary.square() + 1e-4).sqrt()


class Vocoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv1d(1, 8, 9, padding=4),
            torch.nn.Tanh(),
            torch.nn.Conv1d(8, 1, 9, padding=4),
        )
        self.spectrum = Spectrum()

    def loss(self, noisy, clean):
        return (self.spectrum(self.layers(noisy)) - self.spectrum(clean)).abs().mean()


@pytest.fixture
def model(amp_device):
    return Vocoder().to(amp_device)


@pytest.fixture
def optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-4)


@pytest.fixture
def batch(amp_device):
    time = torch.arange(2048) * (2 * math.pi / WINDOW)
    clean = 3 * torch.sin(torch.tensor([8.0, 16.0, 24.0])[:, None] * time)[:, None]
    return (clean + 0.2 * torch.randn(clean.shape)).to(amp_device), clean.to(amp_device)


@pytest.mark.amp(dtype="float16")
def test_vocoder(model, optimizer, batch):
    return model.loss(*batch)
