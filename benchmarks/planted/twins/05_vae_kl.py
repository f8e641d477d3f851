"""The KL term of a VAE near its prior is computed in float32."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ()


class VAE(nn.Module):
    def __init__(self, width=64, latent=48):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(32, width), nn.Tanh())
        self.mu, self.logvar = nn.Linear(width, latent), nn.Linear(width, latent)
        self.decoder = nn.Sequential(nn.Linear(latent, width), nn.Tanh(), nn.Linear(width, 32))
        for head in (self.mu, self.logvar):  # begin at the prior
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)

    def forward(self, x, noise):
        hidden = self.encoder(x)
        mu, logvar = self.mu(hidden), self.logvar(hidden)
        return self.decoder(mu + noise * (0.5 * logvar).exp()), mu, logvar


def kl_divergence(mu, logvar):
    mu, logvar = mu.float(), logvar.float()
    return -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(-1).mean()


@pytest.fixture
def model(amp_device):
    return VAE().to(amp_device)


@pytest.fixture
def optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=3e-4)


@pytest.fixture
def batch(amp_device):
    return torch.randn(64, 32).to(amp_device), torch.randn(64, 48).to(amp_device)


@pytest.mark.amp(dtype="bfloat16")
def test_vae(model, optimizer, batch):
    x, noise = batch
    decoded, mu, logvar = model(x, noise)
    return {"reconstruction": F.mse_loss(decoded, x), "kl": kl_divergence(mu, logvar)}
