"""AMP212: checkpoints that leave something out, and such as hold all that there is to hold."""

from __future__ import annotations

import copy
import itertools

import torch
import torch.nn.functional as F
from torch import nn
from torch.amp import GradScaler
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, StepLR

from tests.catalogue.registry import faulty, healthy
from tests.catalogue.steps import batch, mlp, scaled, sgd

HALF = {"dtype": "float16"}


def momentum(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def trained(arm, saved, model=None, optimizer_of=momentum, schedule_of=None, scaler=None):
    """The plain step, whose checkpoint holds what is named in `saved`."""
    model, scaler = model or mlp(), scaler or arm.scaler
    optimizer = optimizer_of(model)
    scheduler = schedule_of(optimizer) if schedule_of else None
    inner = scaled(arm, model, optimizer, scaler=scaler)

    def step():
        before = scaler.get_scale()
        loss = inner()
        if scheduler and scaler.get_scale() >= before:
            scheduler.step()
        return loss

    everything = {
        "model": model,
        "optimizer": optimizer,
        "scaler": scaler,
        "scheduler": scheduler,
    }
    arm.checkpoint(**{name: everything[name] for name in saved.split()})
    return step


@faulty("AMP212", **HALF)
def a_scaler_that_is_left_out(arm):
    return trained(arm, "model optimizer")


@faulty("AMP212", **HALF, steps=16)
def a_scaler_that_has_to_find_its_scale_again(arm):
    scaler = GradScaler("cpu", init_scale=2.0**24, enabled=arm.enabled)
    return trained(arm, "model optimizer", optimizer_of=adamw, scaler=scaler)


@faulty("AMP212")
def a_scheduler_that_is_left_out(arm):
    return trained(arm, "model optimizer", schedule_of=lambda o: StepLR(o, 2, gamma=0.5))


@faulty("AMP212", **HALF)
def a_warm_up_that_is_left_out_under_a_scaler(arm):
    def schedule_of(optimizer):
        return LambdaLR(optimizer, lambda count: min(1.0, (count + 1) / 20))

    return trained(arm, "model optimizer scaler", schedule_of=schedule_of)


@faulty("AMP212")
def momentum_that_is_left_out(arm):
    return trained(arm, "model")


@faulty("AMP212", **HALF)
def adamw_that_is_left_out(arm):
    return trained(arm, "model scaler", optimizer_of=adamw)


@faulty("AMP212")
def an_average_of_weights_that_is_left_out(arm):
    model = mlp()
    average, inner = copy.deepcopy(model), trained(arm, "model optimizer", model)

    def step():
        loss = inner()
        with torch.no_grad():
            for mean, param in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(param, 0.1)
        return loss

    return step


class Average:
    """An average of weights as people write it, which is no module."""

    def __init__(self, model):
        self.model, self.shadow = model, {k: v.clone() for k, v in model.state_dict().items()}

    def update(self):
        for name, value in self.model.state_dict().items():
            self.shadow[name].lerp_(value, 0.1)

    def state_dict(self):
        return dict(self.shadow)

    def load_state_dict(self, state):
        self.shadow = {name: value.clone() for name, value in state.items()}


def averaged(arm, **saved):
    model = mlp()
    average, optimizer = Average(model), momentum(model)
    inner = scaled(arm, model, optimizer)

    def step():
        loss = inner()
        average.update()
        return loss

    arm.checkpoint(model=model, optimizer=optimizer, **dict.fromkeys(saved, average))
    return step


@faulty("AMP212")
def an_average_of_ones_own_that_is_left_out(arm):
    return averaged(arm)


@healthy("AMP212")
def an_average_of_ones_own_that_is_saved(arm):
    return averaged(arm, ema=True)


class Normed(nn.Module):
    """Divides by a running mean of its inputs' size."""

    def __init__(self, persistent):
        super().__init__()
        self.inner = mlp()
        self.register_buffer("size", torch.ones(()), persistent=persistent)

    def forward(self, x):
        with torch.no_grad():
            self.size.lerp_(x.abs().mean() * 3, 0.2)
        return self.inner(x / self.size)


@faulty("AMP212")
def a_running_mean_that_is_in_no_state_dict(arm):
    return trained(arm, "model optimizer", Normed(persistent=False))


@healthy("AMP212")
def a_running_mean_that_is_in_the_state_dict(arm):
    return trained(arm, "model optimizer", Normed(persistent=True))


def adversaries(arm, saved):
    """Two models that train in turns; `saved`: which of them the checkpoint holds."""
    models = {"generator": mlp(), "critic": mlp()}
    optimizers = {f"{name}_optimizer": adamw(model) for name, model in models.items()}
    x, y = batch()

    def step():
        losses = {}
        for (name, model), optimizer in zip(models.items(), optimizers.values(), strict=True):
            optimizer.zero_grad()
            with arm.autocast():
                losses[name] = F.cross_entropy(model(x).float(), y)
            losses[name].backward()
            optimizer.step()
        return losses

    everything = {**models, **optimizers}
    arm.checkpoint(**{name: each for name, each in everything.items() if name.startswith(saved)})
    return step


@faulty("AMP212")
def a_critic_that_is_left_out(arm):
    return adversaries(arm, "generator")


@healthy("AMP212")
def two_models_that_are_both_saved(arm):
    return adversaries(arm, ("generator", "critic"))


@healthy("AMP212", **HALF)
def a_checkpoint_with_everything(arm):
    return trained(arm, "model optimizer scaler scheduler", schedule_of=lambda o: StepLR(o, 2))


@healthy("AMP212", **HALF)
def one_cycle_and_adamw_that_are_saved(arm):
    def schedule_of(optimizer):
        return OneCycleLR(optimizer, 1e-2, total_steps=1_000_000)

    saved = "model optimizer scaler scheduler"
    return trained(arm, saved, optimizer_of=adamw, schedule_of=schedule_of)


@healthy("AMP212", **HALF)
def dropout_and_batch_norm_that_are_resumed(arm):
    model = nn.Sequential(
        nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4)
    )
    return trained(arm, "model optimizer scaler", model)


@healthy("AMP212", **HALF)
def a_fused_optimizer_that_is_resumed(arm):
    return trained(
        arm,
        "model optimizer scaler",
        optimizer_of=lambda m: torch.optim.AdamW(m.parameters(), fused=True),
    )


@healthy("AMP212")
def a_cache_that_grows_and_is_not_saved(arm):
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()
            self.register_buffer("places", torch.zeros(1), persistent=False)

        def forward(self, x):
            if self.places.shape[0] < x.shape[0]:
                self.places = torch.linspace(0, 1, x.shape[0])
            return self.inner(x + self.places[: x.shape[0], None])

    return trained(arm, "model optimizer", Positions())


def drawn():
    """Batches without an end."""
    while True:
        yield batch()


@healthy("AMP212", **HALF)
def data_from_an_iterator_that_is_made_in_setup(arm):
    model, batches = mlp(), drawn()
    optimizer = adamw(model)
    epoch = itertools.cycle([next(batches) for _ in range(5)])

    def step():
        optimizer.zero_grad()
        losses = []
        for x, y in (next(batches), next(epoch)):
            with arm.autocast():
                losses.append(F.cross_entropy(model(x).float(), y))
        loss = sum(losses) / 2
        arm.scaler.scale(loss).backward()
        arm.scaler.step(optimizer)
        arm.scaler.update()
        return loss

    arm.checkpoint(model=model, optimizer=optimizer, scaler=arm.scaler)
    return step


@healthy("AMP212")
def bfloat16_without_a_scaler_in_the_checkpoint(arm):
    return trained(arm, "model optimizer scheduler", schedule_of=lambda o: StepLR(o, 2))


@healthy("AMP212", **HALF)
def a_scale_that_never_changes_and_is_left_out(arm):
    model, scaler = mlp(), GradScaler("cpu", init_scale=1024.0, enabled=arm.enabled)
    optimizer = momentum(model)

    def end(scaler):
        scaler.step(optimizer)
        scaler.update(1024.0)

    arm.checkpoint(model=model, optimizer=optimizer)
    return scaled(arm, model, optimizer, scaler=scaler, end=end)


@healthy("AMP212")
def an_optimizer_without_a_state_that_is_left_out(arm):
    return trained(arm, "model", optimizer_of=sgd)


@healthy("AMP212")
def a_frozen_teacher_that_is_left_out(arm):
    model, teacher, (x, _) = mlp(), mlp().requires_grad_(False), batch()
    optimizer = momentum(model)

    def step():
        optimizer.zero_grad()
        with arm.autocast():
            loss = F.mse_loss(model(x).float(), teacher(x).float())
        loss.backward()
        optimizer.step()
        return loss

    arm.checkpoint(model=model, optimizer=optimizer)
    return step


@healthy("AMP212", **HALF)
def microbatches_that_are_resumed_between_two_steps(arm):
    model, (x, y), count = mlp(), batch(), itertools.count(1)
    optimizer = momentum(model)

    def step():
        with arm.autocast():
            loss = F.cross_entropy(model(x).float(), y)
        arm.scaler.scale(loss / 4).backward()
        if next(count) % 4 == 0:
            arm.scaler.step(optimizer)
            arm.scaler.update()
            optimizer.zero_grad()
        return loss

    arm.checkpoint(model=model, optimizer=optimizer, scaler=arm.scaler)
    return step
