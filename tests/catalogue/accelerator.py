"""AMP404 and AMP405, of which only an accelerator gives cause; run where there is a CUDA device."""

from __future__ import annotations

import itertools
import time

import torch
from torch import nn

from tests.catalogue.registry import faulty, healthy
from tests.catalogue.steps import classifier, mlp, sgd
from tests.helpers.lab import train

CUDA = {"on": "cuda"}
# Faster than any step gets, since AMP404 looks at speed gates that are missed.
TIMED = {**CUDA, "static": False, "min_speedup": 50.0, "max_time": 10.0}


def products(arm, *sizes, rows=4096):
    """A step that is made of matrix products of these widths."""
    layers = [nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(sizes)]
    model = nn.Sequential(*layers).to(arm.device)
    x = torch.randn(rows, sizes[0], device=arm.device)
    return train(arm, sgd(model), lambda: model(x).float().square().mean())


# AMP404 host-bound


@faulty("AMP404", **TIMED)
def a_tiny_model(arm):
    model = mlp().to(arm.device)
    x, y = torch.randn(16, 8, device=arm.device), torch.zeros(16, 4, device=arm.device)
    return train(arm, sgd(model), lambda: (model(x) - y).float().square().mean())


@faulty("AMP404", **TIMED)
def a_step_that_sleeps(arm):
    step = products(arm, 256, 256)

    def slow():
        time.sleep(0.02)
        return step()

    return slow


@faulty("AMP404", **TIMED)
def a_loader_that_works_in_python(arm):
    step = products(arm, 256, 256)

    def fed():
        sum(i * i for i in range(200_000))
        return step()

    return fed


@healthy("AMP404", gates=False, **TIMED)
def large_products(arm):
    return products(arm, 8192, 8192, 8192, rows=16384)


@healthy("AMP404", gates=False, **TIMED)
def large_pointwise_operations(arm):
    linear = nn.Linear(1024, 1024).to(arm.device)
    x = torch.randn(65536, 1024, device=arm.device)
    return train(arm, sgd(linear), lambda: linear(x).sin().cos().float().square().mean())


@healthy("AMP404", **CUDA)
def a_tiny_model_whose_speed_nobody_gates(arm):
    return a_tiny_model(arm)


# AMP405 slow-shapes


@faulty("AMP405", **CUDA)
def an_odd_hidden_size(arm):
    return products(arm, 1001, 1001, 1001)


@faulty("AMP405", **CUDA)
def an_odd_vocabulary(arm):
    return products(arm, 256, 50257, rows=512)


@faulty("AMP405", **CUDA)
def an_odd_number_of_channels(arm):
    model = nn.Sequential(nn.Conv2d(17, 99, 3), nn.ReLU(), nn.Conv2d(99, 99, 3)).to(arm.device)
    x = torch.randn(64, 17, 32, 32, device=arm.device)
    return train(arm, sgd(model), lambda: model(x).float().square().mean())


@healthy("AMP405", **CUDA)
def an_odd_number_of_tokens(arm):
    return products(arm, 512, 512, rows=1021)


@healthy("AMP405", **CUDA)
def padded_sizes(arm):
    return products(arm, 1024, 1024, 1024)


@healthy("AMP405", **CUDA)
def an_odd_head_on_a_large_body(arm):
    return products(arm, 1024, 1024, 1024, 10)


@healthy("AMP405", dtype="bfloat16")
def odd_sizes_on_a_cpu(arm):
    return classifier(arm, mlp(wide=17))
