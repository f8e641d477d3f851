"""AMP213: micro-batches that do not add up under amp, and such as do."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from tests.catalogue.registry import faulty, healthy
from tests.catalogue.steps import batch, mlp

HALF = {"dtype": "float16"}


def nothing(*_):
    pass


def accumulating(
    arm, model=None, count=4, loss_of=None, between=nothing, last=nothing, fused=False, size=1.0
):
    """`count` micro-batches for each step of AdamW.

    `between` is called after each backward pass, with the model and how many passes there were;
    `last` after all of them, with the model and the optimizer. `size` makes a loss small.
    """
    model, batches = model or mlp(), [batch(8) for _ in range(count)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    loss_of = loss_of or (lambda loss: loss / count)

    def step():
        optimizer.zero_grad()
        total = 0.0
        for passes, (x, y) in enumerate(batches, 1):
            with arm.autocast():
                loss = F.cross_entropy(model(x).float(), y)
            arm.scaler.scale(loss_of(loss) * size).backward()
            between(model, passes)
            total += loss.detach() / count
        last(model, optimizer)
        arm.scaler.step(optimizer)
        arm.scaler.update()
        return total

    return step


def clipped_in_the_end(arm):
    def last(model, optimizer):
        arm.scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), 0.05)

    return last


def kept_in(dtype_of):
    """A buffer for each gradient, as large models keep one: `between` adds to it, `last` reads."""
    kept = {}

    def between(model, _):
        for p in model.parameters():
            kept.setdefault(p, torch.zeros_like(p, dtype=dtype_of())).add_(p.grad)
            p.grad = None

    def last(model, _):
        for p in model.parameters():
            p.grad = kept.pop(p).float()

    return {"between": between, "last": last}


@faulty("AMP213", **HALF)
def gradients_that_are_zeroed_between_microbatches(arm):
    def between(model, passes):
        if arm.enabled and passes < 4:
            model.zero_grad()

    return accumulating(arm, between=between)


@faulty("AMP213")
def gradients_that_are_set_to_none_between_microbatches(arm):
    def between(model, passes):
        if arm.enabled and passes == 2:
            for p in model.parameters():
                p.grad = None

    return accumulating(arm, between=between)


@faulty("AMP213", **HALF)
def unscaled_gradients_that_are_added_up_in_half(arm):
    kept = {}

    def between(model, _):
        for p in model.parameters():
            unscaled = (p.grad / arm.scaler.get_scale()).to(arm.dtype)
            kept[p] = kept[p] + unscaled if p in kept else unscaled
            p.grad = None

    def last(model, _):
        for p in model.parameters():
            p.grad = kept.pop(p).float() * arm.scaler.get_scale()

    return accumulating(arm, between=between, last=last, size=1e-6)


@faulty("AMP213")
def gradients_that_are_added_up_in_bfloat16(arm):
    return accumulating(arm, count=96, **kept_in(lambda: arm.dtype))


@faulty("AMP213")
def gradients_that_are_compressed_after_each_microbatch(arm):
    def between(model, _):
        if arm.enabled:
            for p in model.parameters():
                p.grad.copy_(p.grad.to(torch.float8_e5m2))

    return accumulating(arm, between=between)


@faulty("AMP213")
def microbatches_that_are_clipped_one_by_one(arm):
    def between(model, _):
        if arm.enabled:
            clip_grad_norm_(model.parameters(), 0.05)

    return accumulating(arm, between=between)


@faulty("AMP213", **HALF)
def a_loss_that_is_not_divided_under_amp(arm):
    return accumulating(arm, loss_of=lambda loss: loss if arm.enabled else loss / 4)


@faulty("AMP213")
def a_loss_that_is_divided_twice_under_amp(arm):
    return accumulating(arm, loss_of=lambda loss: loss / 16 if arm.enabled else loss / 4)


@healthy("AMP213", **HALF)
def four_microbatches(arm):
    return accumulating(arm)


@healthy("AMP213")
def four_microbatches_in_bfloat16(arm):
    return accumulating(arm)


@healthy("AMP213", **HALF)
def microbatches_that_are_clipped_in_the_end(arm):
    return accumulating(arm, last=clipped_in_the_end(arm))


@healthy("AMP213")
def microbatches_that_are_clipped_in_the_end_in_bfloat16(arm):
    return accumulating(arm, last=clipped_in_the_end(arm))


@healthy("AMP213", **HALF)
def microbatches_for_a_fused_optimizer(arm):
    return accumulating(arm, fused=True)


@healthy("AMP213", **HALF)
def a_microbatch_in_each_step(arm):
    model, (x, y), count = mlp(), batch(), itertools.count(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step():
        with arm.autocast():
            loss = F.cross_entropy(model(x).float(), y)
        arm.scaler.scale(loss / 3).backward()
        if next(count) % 3 == 0:
            arm.scaler.step(optimizer)
            arm.scaler.update()
            optimizer.zero_grad()
        return loss

    return step


@healthy("AMP213")
def microbatches_that_are_clipped_by_value_in_both_arms(arm):
    return accumulating(arm, last=lambda model, _: clip_grad_value_(model.parameters(), 0.02))


@healthy("AMP213")
def noise_on_the_sum_of_microbatches(arm):
    def last(model, _):
        for p in model.parameters():
            p.grad.add_(torch.randn_like(p.grad), alpha=0.02)

    return accumulating(arm, last=last)


@healthy("AMP213")
def microbatches_that_are_clipped_one_by_one_in_both_arms(arm):
    return accumulating(arm, between=lambda m, _: clip_grad_norm_(m.parameters(), 0.05))


@healthy("AMP213")
def gradients_that_are_added_up_in_float32(arm):
    return accumulating(arm, count=16, **kept_in(lambda: torch.float32))


@healthy("AMP213")
def four_microbatches_that_are_added_up_in_bfloat16(arm):
    return accumulating(arm, **kept_in(lambda: arm.dtype))  # less than rounding does otherwise


@healthy("AMP213", **HALF)
def microbatches_with_dropout_and_batch_norm(arm):
    model = nn.Sequential(
        nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4)
    )
    return accumulating(arm, model)


@healthy("AMP213")
def sharpness_aware_steps(arm):
    model, (x, y) = mlp(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def backward():
        optimizer.zero_grad()
        with arm.autocast():
            loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        return loss

    def step():
        loss = backward()
        moves = [1e-3 * p.grad for p in model.parameters()]
        with torch.no_grad():
            for p, move in zip(model.parameters(), moves, strict=True):
                p.add_(move)
        backward()
        with torch.no_grad():
            for p, move in zip(model.parameters(), moves, strict=True):
                p.sub_(move)
        optimizer.step()
        return loss

    return step


@healthy("AMP213", **HALF)
def a_critic_that_gets_its_generators_gradients_too(arm):
    generator, critic, noise, (real, _) = nn.Linear(8, 8), mlp(), torch.randn(16, 8), batch()
    first = torch.optim.AdamW(generator.parameters(), lr=1e-4)
    second = torch.optim.AdamW(critic.parameters(), lr=1e-4)

    def of(x):
        with arm.autocast():
            return critic(x).float().mean(1)

    def step():
        with arm.autocast():
            fake = generator(noise).float()
        losses = {"generator": F.softplus(-of(fake)).mean()}
        first.zero_grad()
        arm.scaler.scale(losses["generator"]).backward()
        arm.scaler.step(first)
        losses["critic"] = F.softplus(of(fake.detach())).mean() + F.softplus(-of(real)).mean()
        second.zero_grad()
        arm.scaler.scale(losses["critic"]).backward()
        arm.scaler.step(second)
        arm.scaler.update()
        return losses

    return step
