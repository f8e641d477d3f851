"""AMP007: arms that train in different ways, whatever their precision."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, StepLR

from tests.catalogue.registry import faulty, healthy
from tests.catalogue.steps import batch, classifier, mlp, scaled, sgd
from tests.helpers.lab import train

LOOSE = {"gates": False}  # the losses part, of course


@faulty("AMP007", **LOOSE)
def a_smaller_learning_rate(arm):
    model = mlp()
    return classifier(arm, model, sgd(model, lr=0.01 if arm.enabled else 0.05))


@faulty("AMP007", **LOOSE)
def a_larger_epsilon(arm):
    model = mlp()
    eps = 1e-4 if arm.enabled else 1e-8
    return classifier(arm, model, torch.optim.Adam(model.parameters(), eps=eps))


@faulty("AMP007", **LOOSE)
def another_optimizer(arm):
    model = mlp()
    kind = torch.optim.Adam if arm.enabled else torch.optim.AdamW
    return classifier(arm, model, kind(model.parameters()))


@faulty("AMP007", **LOOSE)
def half_of_the_batch(arm):
    model, (x, y) = mlp(), batch(32)
    rows = 16 if arm.enabled else 32
    return train(arm, sgd(model), lambda: F.cross_entropy(model(x[:rows]).float(), y[:rows]))


@faulty("AMP007", **LOOSE)
def a_schedule_that_only_one_arm_follows(arm):
    model = mlp()
    optimizer = sgd(model)
    schedule, step = ExponentialLR(optimizer, 0.5), classifier(arm, model, optimizer)

    def scheduled():
        loss = step()
        if not arm.enabled:
            schedule.step()
        return loss

    return scheduled


@faulty("AMP007", **LOOSE)
def another_dropout(arm):
    drop = nn.Dropout(0.1 if arm.enabled else 0.5)
    return classifier(arm, nn.Sequential(nn.Linear(8, 32), drop, nn.Linear(32, 4)))


@faulty("AMP007", **LOOSE)
def another_dropout_by_a_function(arm):
    model, (x, y) = mlp(), batch()
    p = 0.1 if arm.enabled else 0.5
    return train(arm, sgd(model), lambda: F.cross_entropy(F.dropout(model(x), p).float(), y))


@faulty("AMP007", **LOOSE)
def one_arm_in_evaluation(arm):
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))
    return classifier(arm, model.train(not arm.enabled))


@faulty("AMP007", **LOOSE)
def every_other_step_alone(arm):
    model, (x, y), calls = mlp(), batch(), 0
    optimizer = sgd(model)

    def step():
        nonlocal calls
        calls += 1
        with arm.autocast():
            loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        if calls % 2 or not arm.enabled:
            optimizer.step()
            optimizer.zero_grad()
        return loss

    return step


@healthy("AMP007")
def another_implementation_of_the_same(arm):
    model = mlp()
    how = {"fused": True} if arm.enabled else {"foreach": False}
    return classifier(arm, model, torch.optim.AdamW(model.parameters(), **how))


@healthy("AMP007", dtype="float16")
def a_schedule_that_waits_for_skipped_steps(arm):
    model = mlp()
    optimizer = sgd(model)
    schedule = StepLR(optimizer, 2)
    own = torch.amp.GradScaler("cpu", enabled=arm.enabled, init_scale=2.0**24)

    def end(scaler):
        scaler.step(optimizer)
        before = scaler.get_scale()
        scaler.update()
        if scaler.get_scale() >= before:
            schedule.step()

    return scaled(arm, model, optimizer, scaler=own, end=end)


@healthy("AMP007")
def inputs_in_another_dtype(arm):
    model, (x, y) = mlp(), batch()
    x = x.to(arm.dtype).float()
    return train(arm, sgd(model), lambda: F.cross_entropy(model(x).float(), y))


@healthy("AMP007")
def the_same_dropout_twice(arm):
    model = nn.Sequential(nn.Linear(8, 32), nn.Dropout(0.5), nn.Linear(32, 4), nn.Dropout(0.1))
    return classifier(arm, model)
