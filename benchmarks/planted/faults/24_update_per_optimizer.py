"""A GAN updates the scale after each of its two optimizers, so the second one divides by another
scale than its loss was multiplied by; update once per step.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ("AMP209",)


def mlp(inputs, outputs, width=32):
    return nn.Sequential(nn.Linear(inputs, width), nn.LeakyReLU(0.2), nn.Linear(width, outputs))


@pytest.mark.amp(dtype="float16")
def test_gan(amp_benchmark):
    def setup(arm):
        generator, critic = mlp(8, 2).to(arm.device), mlp(2, 1).to(arm.device)
        generator_optimizer = torch.optim.Adam(generator.parameters(), lr=1e-4, betas=(0.5, 0.9))
        critic_optimizer = torch.optim.Adam(critic.parameters(), lr=1e-4, betas=(0.5, 0.9))
        real, noise = torch.randn(64, 2).to(arm.device), torch.randn(64, 8).to(arm.device)

        def step():
            with arm.autocast():
                fake = generator(noise)
                real_loss = F.softplus(-critic(real)).mean()
                critic_loss = real_loss + F.softplus(critic(fake.detach())).mean()
            critic_optimizer.zero_grad()
            arm.scaler.scale(critic_loss).backward()
            with arm.autocast():
                for parameter in critic.parameters():
                    parameter.requires_grad_(False)
                generator_loss = F.softplus(-critic(fake)).mean()
                for parameter in critic.parameters():
                    parameter.requires_grad_(True)
            generator_optimizer.zero_grad()
            arm.scaler.scale(generator_loss).backward()
            arm.scaler.step(critic_optimizer)
            arm.scaler.update()  # <- here
            arm.scaler.step(generator_optimizer)  # <- here
            arm.scaler.update()
            return {"critic": critic_loss, "generator": generator_loss}

        return step

    amp_benchmark(setup)
