"""A codebook counts how often each code was used in bfloat16, where 4096 + 2 is 4096; keep the
counts in float32.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ("AMP307",)


class Quantizer(nn.Module):
    def __init__(self, codes=32, dim=8, dtype=torch.float32):
        super().__init__()
        self.codes = nn.Embedding(codes, dim)
        # warm-started from k-means over many batches
        self.register_buffer("used", torch.full((codes,), 4096.0, dtype=dtype))  # <- here

    def forward(self, z):
        index = torch.cdist(z.float(), self.codes.weight).argmin(-1)
        self.used += torch.bincount(index, minlength=len(self.used)).to(self.used.dtype)  # <- here
        quantized = self.codes(index)
        commit = F.mse_loss(z.float(), quantized.detach())
        embed = F.mse_loss(quantized, z.float().detach())
        return z + (quantized - z).detach(), commit + embed

    def dead_codes(self):
        return self.used < 0.1 * self.used.mean()


@pytest.mark.amp(dtype="bfloat16")
def test_quantizer(amp_benchmark):
    def setup(arm):
        encoder, decoder = nn.Linear(16, 8).to(arm.device), nn.Linear(8, 16).to(arm.device)
        quantizer = Quantizer(dtype=arm.dtype).to(arm.device)  # <- here
        parameters = [*encoder.parameters(), *decoder.parameters(), *quantizer.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=1e-3)
        x = torch.randn(64, 16).to(arm.device)

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                quantized, commit = quantizer(encoder(x))
                loss = F.mse_loss(decoder(quantized).float(), x) + 0.25 * commit
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    amp_benchmark(setup)
