"""AMP304: numbers that a reduced dtype makes into others; lines at fault are marked with "here"."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.catalogue.registry import faulty, healthy
from tests.catalogue.steps import sgd
from tests.helpers.lab import train

FLOAT16 = {"dtype": "float16"}


def denoiser(arm, embedded):
    """A network whose only knowledge of the time is what `embedded` makes of the steps."""
    model = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 4))
    times, noise = torch.randint(1000, (64,)), torch.randn(64, 4)
    return train(arm, sgd(model), lambda: F.mse_loss(model(embedded(times)).float(), noise))


def frequencies(dtype=None):
    return torch.exp(-math.log(1e4) * torch.arange(8, dtype=torch.float32) / 8).to(dtype)


@faulty("AMP304", gates=False)
def timesteps_in_bfloat16(arm):
    def embedded(times):
        phases = times.to(arm.dtype)[:, None] * frequencies(arm.dtype)  # here
        return torch.cat([phases.sin(), phases.cos()], -1)  # here

    return denoiser(arm, embedded)


@faulty("AMP304", gates=False)
def positions_times_frequencies_as_a_product(arm):
    """The product runs in bfloat16, and no rounding of products may excuse that."""

    def embedded(times):
        phases = times.float()[:, None] @ frequencies()[None]  # here
        return torch.cat([phases.sin(), phases.cos()], -1)

    return denoiser(arm, embedded)


@healthy("AMP304")
def timesteps_in_float32(arm):
    def embedded(times):
        phases = times[:, None] * frequencies()
        return torch.cat([phases.sin(), phases.cos()], -1).to(arm.dtype)

    return denoiser(arm, embedded)


@healthy("AMP304")
def positions_times_frequencies_without_autocast(arm):
    def embedded(times):
        with torch.autocast("cpu", enabled=False):
            phases = times.float()[:, None] @ frequencies()[None]
        return torch.cat([phases.sin(), phases.cos()], -1)

    return denoiser(arm, embedded)


def quantised(arm, distances):
    """An encoder, and the nearest of 16 codes, by distances."""
    encoder, codes = nn.Linear(8, 8), nn.Embedding(16, 8)
    x = torch.randn(64, 8)
    with torch.no_grad():
        encoder.bias.add_(12)
        codes.weight.mul_(0.3).add_(12)

    def loss_of():
        with torch.autocast("cpu", enabled=False):
            z = encoder(x)
        soft = (-distances(z, codes.weight)).softmax(-1)
        return (z.float() - soft.float() @ codes.weight).square().mean()

    return train(arm, sgd(encoder, codes, lr=1e-3), loss_of)


@faulty("AMP304", gates=False)
def distances_by_the_binomial_formula(arm):
    def distances(z, codes):
        z, codes = z.to(arm.dtype), codes.to(arm.dtype)
        squares = z.square().sum(-1, keepdim=True) + codes.square().sum(-1)
        return squares - 2 * z @ codes.t()  # here

    return quantised(arm, distances)


@healthy("AMP304")
def distances_of_differences(arm):
    return quantised(arm, lambda z, codes: (z.float()[:, None] - codes).square().sum(-1))


def wide(arm, loss_of):
    """A layer whose outputs are far from 0, and an optimizer that hardly moves it."""
    model, x = nn.Linear(8, 256), torch.randn(32, 8)
    with torch.no_grad():
        model.weight.mul_(40)
    return train(arm, sgd(model, lr=0.1), lambda: loss_of(model(x)))


@faulty("AMP304", **FLOAT16, gates=False)
def a_norm_whose_squares_overflow(arm):
    """The quotient is 0 where it should be a unit vector, and nothing is infinite at the end."""

    def loss_of(features):
        norm = features.mul(20).square().sum(-1, keepdim=True).sqrt()  # here
        unit = features / (norm / 20)
        return (unit.float() - 0.1).square().mean()

    return wide(arm, loss_of)


@healthy("AMP304", **FLOAT16)
def a_norm_in_float32(arm):
    def loss_of(features):
        norm = features.float().mul(20).square().sum(-1, keepdim=True).sqrt()
        unit = features / (norm / 20)
        return (unit.float() - 0.1).square().mean()

    return wide(arm, loss_of)


@faulty("AMP304", gates=False)
def smoothed_labels_of_rounded_probabilities(arm):
    """Sure probabilities round to 1, whose rest has no logarithm left."""
    model, x, y = nn.Linear(8, 2), torch.randn(64, 8), torch.randint(2, (64,))
    with torch.no_grad():
        model.weight.mul_(12)

    def smoothed(logits):
        p = logits.softmax(-1).to(arm.dtype)
        sure = p.gather(1, y[:, None]).squeeze(1)
        rest = (1 - sure + 1e-4).log()  # here
        return -(0.9 * (sure + 1e-4).log() + 0.1 * rest).float().mean()

    return train(arm, sgd(model, lr=1e-3), lambda: smoothed(model(x)))


@healthy("AMP304")
def smoothed_labels_of_logits(arm):
    model, x, y = nn.Linear(8, 2), torch.randn(64, 8), torch.randint(2, (64,))
    with torch.no_grad():
        model.weight.mul_(12)
    return train(
        arm, sgd(model, lr=1e-3),
        lambda: F.cross_entropy(model(x).float(), y, label_smoothing=0.1),
    )  # fmt: skip


@healthy("AMP304")
def attention_with_sharp_scores(arm):
    """Scores of up to 20 are rounded to a sixteenth, which the softmax passes on."""
    query, key = nn.Linear(8, 16), nn.Linear(8, 16)
    x = torch.randn(4, 12, 8)

    def loss_of():
        scores = 6 * query(x) @ key(x).transpose(1, 2)
        return (scores.softmax(-1) @ x).float().square().mean()

    return train(arm, sgd(query, key), loss_of)


@healthy("AMP304")
def probabilities_that_are_checked_to_add_up_to_one(arm):
    """By how little they miss it is rounding and nothing else, in both arms."""
    model, x, y = nn.Linear(16, 512), torch.randn(32, 16), torch.randint(512, (32,))

    def loss_of():
        probability = model(x).float().softmax(-1)
        assert ((probability.sum(-1) - 1).abs() < 1e-4).all()
        return -torch.distributions.Categorical(probs=probability).log_prob(y).mean()

    return train(arm, sgd(model), loss_of)


@healthy("AMP304")
def the_best_of_many_by_argmax(arm):
    """Rounding decides ties otherwise, here and in fp32."""
    model, x = nn.Linear(8, 64), torch.randn(256, 8)
    table = torch.randn(64, 4)

    def loss_of():
        scores = model(x)
        return (table[scores.argmax(-1)] * scores[:, :4]).float().mean()

    return train(arm, sgd(model), loss_of)


@healthy("AMP304", **FLOAT16)
def a_loss_near_zero(arm):
    """A difference of nearly equal numbers, whose error is what the product's rounding leaves."""
    model, x = nn.Linear(8, 4), torch.randn(64, 8)
    with torch.no_grad():
        y = model(x) + 1e-3 * torch.randn(64, 4)
    return train(arm, sgd(model, lr=0.01), lambda: F.mse_loss(model(x).float(), y))


def summed(arm, total):
    """A loss that is the sum of many, each about 0.5."""
    model, x, y = nn.Linear(8, 1), torch.randn(600, 8), torch.randn(600)
    return train(arm, sgd(model, lr=1e-5), lambda: total((model(x).squeeze(-1) - y).abs()))


@faulty("AMP304", gates=False)
def losses_that_are_added_one_by_one(arm):
    """No addition is far off by itself; from 256 on each is rounded to twos."""

    def total(losses):
        losses = losses.to(arm.dtype)
        found = losses.new_zeros(())
        for each in losses:
            found = found + each  # here
        return found.float()

    return summed(arm, total)


@healthy("AMP304")
def losses_that_are_added_one_by_one_in_float32(arm):
    def total(losses):
        found = torch.zeros(())
        for each in losses.float():
            found = found + each
        return found

    return summed(arm, total)


@faulty("AMP203", dtype="float16", gates=False)
def a_loss_that_another_scaler_scaled(arm):
    """The two scalers' scales drift apart once one of them skips."""
    model, other = nn.Linear(8, 4), nn.Linear(8, 4)
    optimizers = sgd(model), sgd(other)
    scalers = torch.amp.GradScaler("cpu"), torch.amp.GradScaler("cpu", init_scale=1024.0)
    x, y = torch.randn(16, 8), torch.randint(4, (16,))

    def step():
        for optimizer in optimizers:
            optimizer.zero_grad()
        with arm.autocast():
            losses = [F.cross_entropy(each(x).float(), y) for each in (model, other)]
        for loss in losses:
            scalers[0].scale(loss).backward()
        scalers[1].scale(losses[0].detach())
        for scaler, optimizer in zip(scalers, optimizers, strict=True):
            scaler.step(optimizer)
        for scaler in scalers:
            scaler.update()
        return sum(losses)

    return step


@healthy("AMP203", dtype="float16")
def two_scalers_each_with_its_own_loss(arm):
    model, other = nn.Linear(8, 4), nn.Linear(8, 4)
    optimizers = sgd(model), sgd(other)
    scalers = torch.amp.GradScaler("cpu"), torch.amp.GradScaler("cpu", init_scale=1024.0)
    x, y = torch.randn(16, 8), torch.randint(4, (16,))

    def step():
        total = torch.zeros(())
        for each, optimizer, scaler in zip((model, other), optimizers, scalers, strict=True):
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.cross_entropy(each(x).float(), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            total = total + loss.detach()
        return total

    return step
