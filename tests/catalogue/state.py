"""AMP306: buffers and parameters that an overflow leaves behind in a module."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from tests.catalogue.registry import faulty, healthy
from tests.catalogue.steps import batch, classifier, mlp, sgd
from tests.helpers.lab import train

HALF = {"dtype": "float16"}


class Watched(nn.Module):
    """A layer that keeps a figure of its outputs, which the loss does not use."""

    def __init__(self, figure, size=1, start=0.0):
        super().__init__()
        self.layer = nn.Linear(8, 16)
        self.figure = figure
        self.register_buffer("kept", torch.full((size,), start))

    def forward(self, x):
        hidden = self.layer(x)
        with torch.no_grad():
            self.figure(self.kept, hidden)
        return hidden


def watched(arm, figure, times=300.0, **how):
    """Outputs of about `times`, which the following layer scales down again."""
    first = Watched(figure, **how)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        first.layer.weight.mul_(times)
        model[2].weight.mul_(1e-3 / times)
    return classifier(arm, model, sgd(model, lr=1e-6))


@faulty("AMP306", **HALF)
def a_running_mean_of_squares(arm):
    return watched(arm, lambda kept, h: kept.lerp_((h * h).mean().float(), 0.1), times=2e3)


@faulty("AMP306", **HALF)
def a_sum_of_outputs_in_half(arm):
    return watched(arm, lambda kept, h: kept.add_((300 * h.abs()).amax().float()), times=2e3)


@faulty("AMP306", **HALF)
def batch_norm_of_a_branch_that_is_only_looked_at(arm):
    model, x, y = mlp(), *batch()
    probe = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    count = itertools.count()

    def loss_of():
        with torch.no_grad():
            probe(x * (1e6 if next(count) == 2 else 1.0))
        return F.cross_entropy(model(x).float(), y)

    return train(arm, sgd(model), loss_of)


@healthy("AMP306", **HALF)
def a_running_mean_of_squares_in_float32(arm):
    return watched(arm, lambda kept, h: kept.lerp_(h.float().square().mean(), 0.1), times=50.0)


@healthy("AMP306", **HALF)
def a_running_minimum_that_begins_at_infinity(arm):
    def smallest(kept, h):
        kept[:1] = torch.minimum(kept[:1], h.amin().float())

    return watched(arm, smallest, times=1.0, size=2, start=float("inf"))


@healthy("AMP306", **HALF)
def batch_norm(arm):
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    return classifier(arm, model)
