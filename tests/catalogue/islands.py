"""What a fix keeps in float32 on purpose, inside of a region: nothing speaks, in either dtype."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.catalogue.registry import Setup, healthy
from tests.catalogue.steps import sgd
from tests.helpers.lab import train


def in_both_dtypes(code: str) -> Callable[[Setup], Setup]:
    def register(setup: Setup) -> Setup:
        for dtype in ("bfloat16", "float16"):
            each: Any = partial(setup)
            each.__name__ = f"{setup.__name__}_in_{dtype}"
            healthy(code, dtype=dtype)(each)
        return setup

    return register


def off():
    return torch.autocast("cpu", enabled=False)


@in_both_dtypes("AMP402")
def favor_attention_in_float32(arm):
    """Random features are exponentials of products, and their sums a quotient."""
    width, features, length = 16, 32, 64
    project, head = nn.Linear(width, 3 * width), nn.Linear(width, 4)
    omega = torch.randn(features, width)
    x, y = torch.randn(8, length, width), torch.randint(4, (8,))

    def positive(z):
        return (z @ omega.T - z.square().sum(-1, keepdim=True) / 2).exp() + 1e-6

    def loss_of():
        q, k, v = project(x).chunk(3, -1)
        with off():
            q, k = positive(q.float() / 2), positive(k.float() / 2)
            norm = (q * k.sum(1, keepdim=True)).sum(-1, keepdim=True)
            mixed = torch.einsum("bnf,bfd->bnd", q, torch.einsum("bnf,bnd->bfd", k, v.float()))
            mixed = (mixed / norm).mean(1)
        return F.cross_entropy(head(mixed).float(), y)

    return train(arm, sgd(project, head), loss_of)


@in_both_dtypes("AMP402")
def a_penalty_in_float32_beside_the_region(arm):
    """A region that is switched off says what is wanted, whether it is in another one or not."""
    critic = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = sgd(critic)
    x = torch.randn(48, 8)

    def step():
        optimizer.zero_grad()
        with arm.autocast():
            loss = critic(x).float().mean()
        with off():
            steep = critic(x).square().mean()
        loss = loss + steep
        arm.scaler.scale(loss).backward()
        arm.scaler.step(optimizer)
        arm.scaler.update()
        return loss.detach()

    return step


@in_both_dtypes("AMP503")
def messages_that_are_averaged_in_float32(arm):
    """Many edges and few nodes: what is cast up to be summed is the step's largest tensor."""
    nodes, edges, width = 200, 10_000, 64
    encode, head = nn.Linear(width, width), nn.Linear(width, 4)
    x, y = torch.randn(nodes, width), torch.randint(4, (nodes,))
    source, target = torch.randint(nodes, (edges,)), torch.randint(nodes, (edges,))
    degree = torch.bincount(target, minlength=nodes).clamp(min=1).unsqueeze(1)

    def loss_of():
        h = encode(x).relu()
        mean = torch.zeros(nodes, width).index_add(0, target, h[source].float()) / degree
        return F.cross_entropy(head(mean).float(), y)

    return train(arm, sgd(encode, head), loss_of)


@in_both_dtypes("AMP402")
def an_average_of_the_weights_with_a_loss_of_its_own(arm):
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    teacher = copy.deepcopy(model).requires_grad_(False)
    optimizer = sgd(model)
    x, y = torch.randn(64, 32), torch.randint(32, (64,))

    def step():
        optimizer.zero_grad()
        with arm.autocast():
            h = model(x)
            with off():
                own = F.mse_loss(h.float(), teacher(x))
            loss = F.cross_entropy(h.float(), y) + own
        arm.scaler.scale(loss).backward()
        arm.scaler.step(optimizer)
        arm.scaler.update()
        with torch.no_grad():
            for average, weight in zip(teacher.parameters(), model.parameters(), strict=True):
                average.lerp_(weight, 0.1)
        return loss.detach()

    return step


@in_both_dtypes("AMP402")
def codes_that_are_looked_up_in_float32(arm):
    """The nearest of many vectors: a product with all of them, larger than the model's own."""
    encode, decode = nn.Linear(32, 32), nn.Linear(32, 32)
    codes = nn.Parameter(torch.randn(512, 32))
    optimizer = torch.optim.SGD([*encode.parameters(), *decode.parameters(), codes], lr=0.01)
    x = torch.randn(256, 32)

    def loss_of():
        z = encode(x)
        with off():
            z = z.float()
            distance = z.square().sum(1, keepdim=True) - 2 * z @ codes.T + codes.square().sum(1)
            nearest = codes[distance.argmin(1)]
        commitment = F.mse_loss(z, nearest.detach()) + F.mse_loss(nearest, z.detach())
        return F.mse_loss(decode(z + (nearest - z).detach()).float(), x) + commitment

    return train(arm, optimizer, loss_of)


@in_both_dtypes("AMP402")
def an_lstm_cell_in_float32(arm):
    """A sum over time that is kept in float32, and its gates with it."""
    gates, head = nn.Linear(64, 128), nn.Linear(32, 4)
    x, y = torch.randn(12, 16, 32), torch.randint(4, (16,))

    def loss_of():
        h = c = x.new_zeros(16, 32)
        with off():
            for each in x:
                i, f, g, o = gates(torch.cat((each, h), 1)).chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
        return F.cross_entropy(head(h).float(), y)

    return train(arm, sgd(gates, head), loss_of)


@in_both_dtypes("AMP503")
def targets_that_are_kept_reduced_and_compared_in_float32(arm):
    """They take half of the memory between the steps, and are cast up for the loss alone."""
    model = nn.Linear(64, 64)
    x = torch.randn(5_000, 64)
    y = torch.randn(5_000, 64).to(arm.dtype)
    return train(arm, sgd(model), lambda: F.mse_loss(model(x).float(), y.float()))
