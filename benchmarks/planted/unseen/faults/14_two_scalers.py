"""Half of the discriminator's loss is scaled by the generator's GradScaler and divided by the
discriminator's; every loss of an optimizer has to be scaled by the scaler that steps it."""

import pytest
import torch
import torch.nn.functional as F

EXPECT = ("AMP203", "AMP208", "AMP304", "loss gate")


class GanTrainer:
    def __init__(self, arm, device):
        self.arm = arm
        self.generator = torch.nn.Sequential(
            torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 16)
        ).to(device)
        self.critic = torch.nn.Sequential(
            torch.nn.Linear(16, 64), torch.nn.LeakyReLU(0.2), torch.nn.Linear(64, 1)
        ).to(device)
        self.generator_optimizer = torch.optim.SGD(self.generator.parameters(), lr=0.01)
        self.critic_optimizer = torch.optim.SGD(self.critic.parameters(), lr=0.1)
        self.critic_scaler = arm.scaler
        self.generator_scaler = torch.amp.GradScaler(
            device.type, init_scale=1024.0, enabled=arm.scaler.is_enabled()
        )
        self.real = (1 + torch.randn(64, 16)).to(device)
        self.noise = torch.randn(64, 8).to(device)

    def train_critic(self, fake):
        self.critic_optimizer.zero_grad()
        with self.arm.autocast():
            on_real = F.softplus(-self.critic(self.real)).mean()
            on_fake = F.softplus(self.critic(fake.detach())).mean()
        self.critic_scaler.scale(on_real).backward()
        self.generator_scaler.scale(on_fake).backward()  # <- here
        self.critic_scaler.step(self.critic_optimizer)
        self.critic_scaler.update()
        return on_real + on_fake

    def train_generator(self, fake):
        self.generator_optimizer.zero_grad()
        with self.arm.autocast():
            loss = F.softplus(-self.critic(fake)).mean()
        self.generator_scaler.scale(loss).backward()
        self.generator_scaler.step(self.generator_optimizer)
        self.generator_scaler.update()
        return loss

    def step(self):
        with self.arm.autocast():
            fake = self.generator(self.noise)
        return {"critic": self.train_critic(fake), "generator": self.train_generator(fake)}


@pytest.mark.amp(dtype="float16")
def test_gan(amp_benchmark, amp_device):
    amp_benchmark(lambda arm: GanTrainer(arm, amp_device).step)
