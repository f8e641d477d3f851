"""Chosen lines run in float32, and nothing else does."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F

from pytest_amp.lab.watch.source import location
from pytest_amp.lab.watch.widened_lines import WidenedLines

HALF = torch.float16


def line_of(function, marked="# widened"):
    """The line of a function in this file that ends with a mark, as `location` writes it."""
    source, first = inspect.getsourcelines(function)
    number = next(first + n for n, line in enumerate(source) if line.rstrip().endswith(marked))
    here = location()
    return f"{here.rpartition(':')[0]}:{number}"


def widened(function, *args):
    with torch.autocast("cpu", HALF), WidenedLines("cpu", {line_of(function)}):
        return function(*args)


def half():
    return torch.full((4, 4), 300.0, dtype=HALF)


def test_a_line_takes_wide_inputs_and_returns_a_wide_output() -> None:
    def squares(x):
        y = x * x  # widened
        return y, x * x

    wide, narrow = widened(squares, half())
    assert (wide.dtype, float(wide[0, 0])) == (torch.float32, 90000.0)
    assert (narrow.dtype, float(narrow[0, 0])) == (HALF, float("inf"))


def test_autocast_is_off_in_the_line_alone() -> None:
    def products(x):
        a = x @ x  # widened
        return a, x @ x

    a, b = widened(products, torch.ones(4, 4))
    assert (a.dtype, b.dtype) == (torch.float32, HALF)


def by_half(x, _):
    return x.half()  # widened


def by_dtype(x, _):
    return x.to(HALF)  # widened


def by_type(x, _):
    return x.type(HALF)  # widened


def like_another(x, other):
    return x.to(other)  # widened


def made_in_half(*_):
    return torch.full((4,), 1.0, dtype=HALF)  # widened


@pytest.mark.parametrize("way", [by_half, by_dtype, by_type, like_another, made_in_half])
def test_a_line_that_converts_to_half_converts_to_float32(way) -> None:
    assert widened(way, torch.ones(4), half()).dtype is torch.float32


def test_what_is_changed_in_place_stays_the_same_tensor() -> None:
    def in_place(x, y):
        x.add_(y)  # widened
        return x

    def by_index(x, y):
        x[0] = y[0] * 2  # widened
        return x

    def by_operator(x, y):
        x += y  # widened
        return x

    for function in (in_place, by_index, by_operator):
        x = half()
        assert widened(function, x, half()) is x
        assert (x.dtype, float(x[0, 0])) == (HALF, 600.0)


def test_a_function_of_torchs_library_belongs_to_the_line_that_calls_it() -> None:
    def normalised(x):
        return F.layer_norm(x, (4,))  # widened

    assert widened(normalised, half()).dtype is torch.float32


def test_gradients_flow_through_a_widened_line() -> None:
    def scaled(x):
        y = (x * x).sum()  # widened
        return y / 1e5

    x = half().requires_grad_()
    widened(scaled, x).backward()
    assert x.grad.dtype is HALF
    assert torch.allclose(x.grad, torch.full_like(x, 600 / 1e5), rtol=1e-2)
