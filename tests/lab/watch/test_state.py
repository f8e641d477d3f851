"""State that is not finite any more, in the modules of one arm alone."""

from __future__ import annotations

import math

import torch
from torch import nn

from pytest_amp.lab.watch.state import MadeModules


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


def test_buffers_and_parameters_are_named_from_the_outermost_module() -> None:
    made = MadeModules()
    model = net()
    assert made.nonfinite_state() == ()
    model[1].running_mean[0] = math.nan
    with torch.no_grad():
        model[0].bias[1] = math.inf
    assert made.nonfinite_state() == ("0.bias", "1.running_mean")


def test_older_modules_are_another_arms() -> None:
    older = net()
    older[1].running_var.fill_(math.inf)
    made = MadeModules()
    newer = net()
    assert made.nonfinite_state() == ()
    newer[1].running_var.fill_(math.inf)
    assert made.nonfinite_state() == ("1.running_var",)


def test_a_module_outside_of_the_model_counts_and_compiled_ones_have_their_own_names() -> None:
    made = MadeModules()
    model, average = net(), net()
    compiled = torch.compile(model)
    model[1].running_mean.fill_(math.nan)
    average[1].running_var.fill_(math.nan)
    assert sorted(made.nonfinite_state()) == ["1.running_mean", "1.running_var"]
    assert compiled is not model


def test_integers_and_sparse_buffers_do_no_harm() -> None:
    made = MadeModules()
    model = net()
    model.register_buffer("indices", torch.arange(3))
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    model.register_buffer("nothing", torch.empty(0))
    assert made.nonfinite_state() == ()
