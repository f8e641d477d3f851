"""The line that makes what a step keeps for good."""

from __future__ import annotations

import inspect

import torch
from torch import nn

from pytest_amp.lab.phases.kept import kept_at
from tests.helpers.lab import workbench

HERE = "tests/lab/phases/test_kept.py"
LINE = {}


def keeping(keep):
    """A plain step; `keep(past, model, loss)` may keep something of it."""

    def setup(arm):
        model, x, past = nn.Linear(8, 8), torch.randn(16, 8), []
        optimizer = torch.optim.AdamW(model.parameters())

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                LINE["loss"] = inspect.currentframe().f_lineno + 1
                loss = model(x).float().square().mean()
            loss.backward()
            optimizer.step()
            keep(past, model, loss)
            return loss.detach()

        return step

    return setup


def where(keep):
    return kept_at(workbench(keeping(keep)), 2)


def test_copies_of_gradients_lead_to_the_line_that_copies() -> None:
    def keep(past, model, _):
        LINE["copy"] = inspect.currentframe().f_lineno + 1
        past.append([p.grad.clone() for p in model.parameters()])

    assert where(keep) == f"{HERE}:{LINE['copy']}"


def test_the_line_that_makes_most_is_named() -> None:
    def keep(past, model, _):
        past.append(model.bias.detach() + 1)
        LINE["most"] = inspect.currentframe().f_lineno + 1
        past.append(model.weight.detach() + 1)

    assert where(keep) == f"{HERE}:{LINE['most']}"


def test_a_graph_is_held_by_what_was_computed_last() -> None:
    assert where(lambda past, _, loss: past.append(loss)) == f"{HERE}:{LINE['loss']}"


def test_a_step_that_keeps_nothing_has_no_line() -> None:
    assert where(lambda past, _, loss: past.append(loss.item())) is None
