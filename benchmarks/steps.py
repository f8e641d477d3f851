"""The training steps that the benchmarks measure."""

import torch
import torch.nn.functional as F
from torch import nn

from pytest_amp.lab.watch.tensors import dtype_name
from pytest_amp.recipes import Recipes


def mlp(arm):
    """A small step: an MLP with AdamW on one repeated batch."""
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 10)).to(arm.device)
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randn(128, 256, device=arm.device)
    y = torch.randint(0, 10, (128,), device=arm.device)
    return training_step(arm, optimizer, lambda: F.cross_entropy(model(x), y))


def transformer(arm):
    """A larger step: four transformer layers, 128 wide, batches of 8 x 64."""
    layer = nn.TransformerEncoderLayer(128, 4, 256, 0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).to(arm.device)
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randn(8, 64, 128, device=arm.device)
    return training_step(arm, optimizer, lambda: F.mse_loss(model(x), x))


def default_recipes(device):
    """float32 against autocast in the device's dtype."""
    return Recipes.autocast(dtype_name(device.default_dtype()))


def training_step(arm, optimizer, loss_of):
    def step():
        optimizer.zero_grad(set_to_none=True)
        with arm.autocast():
            loss = loss_of()
        arm.scaler.scale(loss).backward()
        arm.scaler.step(optimizer)
        arm.scaler.update()
        return loss

    return step


STEPS = {"mlp": mlp, "transformer": transformer}
