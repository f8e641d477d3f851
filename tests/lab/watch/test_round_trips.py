"""What is cast up and only cast down again: what counts as use, and what is held for it."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_amp.lab.watch.operators import OpRecord

BF16 = torch.bfloat16
ROWS, WIDTH = 32, 16
NARROW = 2 * ROWS * WIDTH  # the bytes of the input in bfloat16
WIDE = 2 * NARROW


def trips(use, before=torch.tanh):
    """The round trips of a step that hands an activation in bfloat16 to a function."""
    body, head, x = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4), torch.randn(ROWS, WIDTH)
    record = OpRecord()
    with record.watching():
        with torch.autocast("cpu", dtype=BF16):
            loss = head(use(before(body(x)))).float().square().mean()
        loss.backward()
    return record.operators().round_trips


def beside_a_float32(x):
    return torch.cat([x.float()[:, 1:], torch.full((ROWS, 1), 0.37)], -1)


USES = {
    "a norm": lambda x: F.layer_norm(x.float(), (WIDTH,)),
    "a softmax": lambda x: x.float().softmax(-1),
    "arithmetic": lambda x: x.float() * 1.1,
    "arithmetic in place": lambda x: x.float().mul_(1.1),
    "a sum after a view": lambda x: x + x.float().view(-1, 4).sum(),
    "a neighbour in float32": beside_a_float32,
    "a product in float32": lambda x: _outside(lambda: x.float() @ torch.eye(WIDTH)),
}


def _outside(function):
    with torch.autocast("cpu", enabled=False):
        return function()


@pytest.mark.parametrize("use", USES)
def test_what_works_in_float32_is_a_use(use) -> None:
    assert trips(USES[use]) == ()


MOVES = {
    "nothing": (lambda x: x.float(), NARROW),
    "a view": (lambda x: x.float().view(-1, WIDTH), NARROW),
    "a copy": (lambda x: x.float().clone(), 0),
    "a ReLU": (lambda x: x.float().relu(), WIDE),
    "a ReLU in place": (lambda x: x.float().relu_(), WIDE),
    "cat": (lambda x: torch.cat([x.float()[:, :8], x.float()[:, 8:]], -1), 0),
    "dropout": (lambda x: F.dropout(x.float(), 0.5), NARROW),  # half of its mask
}


@pytest.mark.parametrize("how", MOVES)
def test_what_only_moves_values_is_none(how) -> None:
    use, held = MOVES[how]
    (trip,) = trips(use)
    assert trip.held == held
    assert trip.location.startswith("tests/lab/watch/test_round_trips.py:")


def test_a_copy_that_takes_the_place_of_its_source_costs_nothing() -> None:
    (trip,) = trips(lambda x: x.float(), before=lambda x: x + 1)  # whose result is not saved
    assert (trip.count, trip.bytes, trip.held) == (1, WIDE + NARROW, 0)


def test_each_cast_down_of_one_cast_up_counts() -> None:
    head = nn.Linear(WIDTH, WIDTH)

    def use(x):
        wide = x.float()
        return head(wide) + head(wide)

    (trip,) = trips(use)
    assert (trip.count, trip.bytes, trip.held) == (1, WIDE + 2 * NARROW, 2 * NARROW)
    assert trip.location.endswith(f":{inspect.getsourcelines(use)[1] + 1}")


def test_a_cast_up_that_is_never_cast_down_is_none() -> None:
    kept = []
    assert trips(lambda x: kept.append(x.float()) or x) == ()
