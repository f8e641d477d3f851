"""AMP201, AMP209 and AMP211: a scale that is missing, moves too early, or is the end of all."""

from __future__ import annotations

import math
import sys

import torch
import torch.nn.functional as F
from torch import nn

from tests.catalogue.registry import faulty, healthy
from tests.catalogue.steps import BF16, batch, classifier, mlp, scaled, sgd, stepping

HALF = {"dtype": "float16"}

# AMP201 fp16-without-scaler


def unscaled(arm, model, optimizer=None):
    x, y = batch()

    def loss_of():
        with arm.autocast():
            return F.cross_entropy(model(x).float(), y)

    return stepping(arm, optimizer or sgd(model), loss_of)


@faulty("AMP201", **HALF)
def a_plain_backward_pass(arm):
    return unscaled(arm, mlp())


@faulty("AMP201", **HALF)
def a_scaler_that_is_disabled(arm):
    model = mlp()
    return scaled(arm, model, sgd(model), scaler=torch.amp.GradScaler("cpu", enabled=False))


@faulty("AMP201", **HALF)
def accumulation_of_means(arm):
    model, (x, y) = mlp(), batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step():
        optimizer.zero_grad()
        total = 0.0
        for part in range(4):
            piece = slice(4 * part, 4 * part + 4)
            with arm.autocast():
                loss = F.cross_entropy(model(x[piece]).float(), y[piece]) / 4
            loss.backward()
            total += loss.item()
        optimizer.step()
        return total

    return step


@faulty("AMP201", **HALF)
def a_compiled_model(arm):
    model, (x, y) = mlp(), batch()
    compiled = torch.compile(model, backend="eager")

    def loss_of():
        with arm.autocast():
            return F.cross_entropy(compiled(x).float(), y)

    return stepping(arm, sgd(model), loss_of)


@healthy("AMP201", **HALF)
def a_scaled_backward_pass(arm):
    return classifier(arm, mlp())


@healthy("AMP201")
def bfloat16_needs_none(arm):
    return unscaled(arm, mlp())


@healthy("AMP201", **HALF)
def a_static_loss_scale(arm):
    model, (x, y) = mlp(), batch()
    optimizer = sgd(model)
    scale = 1024.0 if arm.enabled else 1.0

    def step():
        optimizer.zero_grad()
        with arm.autocast():
            loss = F.cross_entropy(model(x).float(), y)
        (loss * scale).backward()
        for param in model.parameters():
            param.grad /= scale
        optimizer.step()
        return loss.detach()

    return step


@healthy("AMP201", **HALF)
def a_frozen_float16_encoder(arm):
    """Its forward pass runs in float16, and no backward pass does."""
    encoder, head, (x, y) = nn.Linear(8, 8).requires_grad_(False), mlp(), batch()

    def loss_of():
        with torch.no_grad(), arm.autocast():
            features = encoder(x).float()
        with torch.autocast("cpu", dtype=BF16, enabled=arm.enabled):
            return F.cross_entropy(head(features).float(), y)

    return stepping(arm, sgd(head), loss_of)


# AMP209 scale-changed-mid-accumulation


def accumulating(arm, after_each):
    """Two backward passes for each step; `after_each` of them something is done with the scaler."""
    model, (x, y) = mlp(), batch()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", enabled=arm.enabled)

    def step():
        optimizer.zero_grad()
        losses = []
        for part in range(2):
            piece = slice(8 * part, 8 * part + 8)
            with arm.autocast():
                loss = F.cross_entropy(model(x[piece]).float(), y[piece]) / 2
            scaler.scale(loss).backward()
            after_each(scaler, optimizer, part)
            losses.append(loss.detach())
        scaler.step(optimizer)
        scaler.update()
        return sum(losses)

    return step


@faulty("AMP209", **HALF)
def an_update_between_two_optimizers(arm):
    first, second, scaler, (x, y) = nn.Linear(8, 4), nn.Linear(8, 4), arm.scaler, batch()
    optimizers = sgd(first), sgd(second)

    def step():
        for optimizer in optimizers:
            optimizer.zero_grad()
        with arm.autocast():
            loss = F.cross_entropy((first(x) + second(x)).float(), y)
        scaler.scale(loss).backward()
        for optimizer in optimizers:
            scaler.step(optimizer)
            scaler.update()
        return loss

    return step


@faulty("AMP209", **HALF)
def a_scale_that_is_set_after_each_backward_pass(arm):
    return accumulating(arm, lambda scaler, *_: scaler.update(2.0**12) if arm.enabled else None)


@faulty("AMP209", **HALF)
def unscaled_and_updated_after_each_backward_pass(arm):
    def after_each(scaler, optimizer, part):
        if part == 0:
            scaler.unscale_(optimizer)
            scaler.update()

    return accumulating(arm, after_each)


def two_paces(arm, update):
    """Two optimizers on one scaler: one steps each time, the other on every second."""
    quick, slow, (x, y) = nn.Linear(8, 4), nn.Linear(8, 4), batch()
    first, second = sgd(quick), sgd(slow)
    scaler = torch.amp.GradScaler("cpu", enabled=arm.enabled)

    def step():
        second.zero_grad()
        for part in range(2):
            first.zero_grad()
            with arm.autocast():
                loss = F.cross_entropy((quick(x) + slow(x)).float(), y) / 2
            scaler.scale(loss).backward()
            scaler.step(first)
            if part == 1:
                scaler.step(second)
            update(scaler, part)
        return loss.detach()

    return step


@faulty("AMP209", **HALF)
def an_optimizer_that_steps_more_often_than_the_other(arm):
    return two_paces(arm, lambda scaler, _: scaler.update())


@healthy("AMP209", **HALF)
def updated_once_after_all_backward_passes(arm):
    return accumulating(arm, lambda *_: None)


@healthy("AMP209", **HALF)
def unscaled_after_the_last_backward_pass(arm):
    def after_each(scaler, optimizer, part):
        if part == 1:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)

    return accumulating(arm, after_each)


@healthy("AMP209", **HALF)
def a_gan_with_one_scaler_whose_critic_collects_the_generators_gradients(arm):
    generator, critic = nn.Linear(4, 8), nn.Linear(8, 1)
    first, second = sgd(critic), sgd(generator)
    scaler = torch.amp.GradScaler("cpu", enabled=arm.enabled)
    noise, real = torch.randn(16, 4), torch.randn(16, 8)

    def step():
        first.zero_grad()
        with arm.autocast():
            made = critic(generator(noise).detach()).float().mean()
            loss = made.square() - critic(real).float().mean() + 2
        scaler.scale(loss).backward()
        scaler.step(first)
        second.zero_grad()
        with arm.autocast():
            fooled = 2 - critic(generator(noise)).float().mean()
        scaler.scale(fooled).backward()
        scaler.step(second)
        scaler.update()
        return {"critic": loss.detach(), "generator": fooled.detach()}

    return step


# AMP211 dies-on-overflow


def trained():
    model = mlp()
    return model, sgd(model)


def finite(model):
    return all(p.grad.isfinite().all() for p in model.parameters())


def clipped(model, **how):
    return torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0, **how)


@faulty("AMP211", **HALF)
def clipping_that_raises(arm):
    model, optimizer = trained()

    def edit(scaler):
        scaler.unscale_(optimizer)
        clipped(model, error_if_nonfinite=True)

    return scaled(arm, model, optimizer, edit)


@faulty("AMP211", **HALF)
def an_assertion_about_the_gradients(arm):
    model, optimizer = trained()

    def edit(_):
        assert finite(model), "a gradient is not finite"

    return scaled(arm, model, optimizer, edit)


@faulty("AMP211", **HALF)
def an_exit_where_the_norm_is_not_a_number(arm):
    model, optimizer = trained()

    def edit(scaler):
        scaler.unscale_(optimizer)
        if not math.isfinite(clipped(model)):
            sys.exit("the norm is not finite")

    return scaled(arm, model, optimizer, edit)


@faulty("AMP211", **HALF)
def anomaly_detection_that_is_left_on(arm):
    model, optimizer = trained()
    step = scaled(arm, model, optimizer)

    def watched():
        with torch.autograd.set_detect_anomaly(True):
            return step()

    return watched


@healthy("AMP211", **HALF)
def clipping_that_lets_the_scaler_decide(arm):
    model, optimizer = trained()

    def edit(scaler):
        scaler.unscale_(optimizer)
        clipped(model, error_if_nonfinite=False)

    return scaled(arm, model, optimizer, edit)


@healthy("AMP211", **HALF)
def a_check_of_the_scaled_loss(arm):
    model, optimizer = trained()
    x, y = batch()

    def step():
        optimizer.zero_grad()
        with arm.autocast():
            loss = F.cross_entropy(model(x).float(), y)
        times_scale = arm.scaler.scale(loss)
        if not times_scale.isfinite():
            raise ValueError("the loss is not finite")
        times_scale.backward()
        arm.scaler.step(optimizer)
        arm.scaler.update()
        return loss

    return step


@healthy("AMP211", **HALF)
def many_skipped_steps_in_a_row_and_then_the_end(arm):
    model, optimizer = trained()
    skipped = 0

    def end(scaler):
        nonlocal skipped
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        skipped = skipped + 1 if scaler.get_scale() < before else 0
        if skipped == 10:
            raise RuntimeError("ten steps in a row were skipped")

    return scaled(arm, model, optimizer, end=end)
