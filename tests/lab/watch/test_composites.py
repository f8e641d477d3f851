"""Calls that other devices run as one kernel: what they are made of here counts as one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.bias import causal_lower_right
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from pytest_amp.judge.dtype_map import lines_of
from pytest_amp.lab.watch.operators import OpRecord
from pytest_amp.observations import Operators


def recorded(run: Callable[[], torch.Tensor], *, autocast: bool = True) -> Operators:
    record = OpRecord()
    with record.watching():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = run()
        out.float().sum().backward()
    return record.operators()


def named(operators: Operators, kind: str) -> set[tuple[str, str, int]]:
    """The phase, the dtype and the calls of each line of that name in the map."""
    return {(each.phase, each.dtype, each.calls) for each in lines_of(operators) if each.op == kind}


def attention(dropout: float, calls: int = 1) -> Callable[[], torch.Tensor]:
    query, key, value = (torch.randn(2, 2, 4, 8, requires_grad=True) for _ in range(3))

    def run() -> torch.Tensor:
        out = query
        for _ in range(calls):
            out = F.scaled_dot_product_attention(out, key, value, None, dropout)
        return out

    return run


@pytest.mark.parametrize("calls", [1, 2])
def test_attention_makes_the_same_map_as_one_kernel_and_as_products(calls: int) -> None:
    one_kernel, products = (recorded(attention(dropout, calls)) for dropout in (0.0, 0.5))
    assert len(one_kernel.rows) < len(products.rows)
    assert lines_of(one_kernel) == lines_of(products)
    assert named(products, "attention") == {
        ("forward", "bfloat16", calls), ("backward", "bfloat16", calls),
    }  # fmt: skip


def test_flops_of_its_products_are_counted_as_before() -> None:
    one_kernel, products = (recorded(attention(dropout)) for dropout in (0.0, 0.5))
    # The kernel computes its scores once more in the backward pass.
    assert products.flops == 2 * 2 * 2 * 2 * 4 * 4 * 8 * 3
    assert one_kernel.flops == products.flops * 7 / 6


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("autocast", [True, False])
def test_a_recurrent_layer_is_one_call_however_many_steps_it_takes(layer, autocast) -> None:
    model, x = layer(4, 8, num_layers=2), torch.randn(5, 2, 4)
    found = recorded(lambda: model(x)[0], autocast=autocast)
    (forward,) = [each for each in named(found, "rnn") if each[0] == "forward"]
    assert forward[2] == 1
    (backward,) = [each for each in named(found, "rnn") if each[0] == "backward"]
    assert backward == ("backward", *forward[1:])
    assert not named(found, "matmul")


def test_a_cell_is_one_call_in_each_step() -> None:
    cell, x = nn.GRUCell(4, 8), torch.randn(5, 2, 4)

    def run() -> torch.Tensor:
        state = torch.zeros(2, 8)
        for each in x:
            state = cell(each, state)
        return state

    assert named(recorded(run, autocast=False), "rnn") == {
        ("forward", "float32", 5), ("backward", "float32", 5),
    }  # fmt: skip


def test_dropout_is_one_call_and_none_where_nothing_is_dropped() -> None:
    x = torch.randn(4, 4, requires_grad=True)
    found = named(recorded(lambda: F.dropout(F.dropout(x, 0.5) + 1, 0.5)), "dropout")
    assert found == {("forward", "float32", 2), ("backward", "float32", 2)}
    assert named(recorded(lambda: F.dropout(x, 0.5, training=False) + 1), "dropout") == set()


def test_a_norm_by_root_mean_square_is_one_call() -> None:
    norm, x = nn.RMSNorm(8), torch.randn(4, 8, requires_grad=True)
    assert named(recorded(lambda: norm(x), autocast=False), "rms_norm") == {
        ("forward", "float32", 1), ("backward", "float32", 1),
    }  # fmt: skip


def test_what_a_backward_pass_repeats_is_a_call_of_its_own() -> None:
    run = attention(0.5)
    found = recorded(lambda: checkpoint(run, use_reentrant=False))
    assert named(found, "attention") == {("forward", "bfloat16", 1), ("backward", "bfloat16", 2)}


def test_a_call_that_raises_ends() -> None:
    x = torch.randn(4, 4, requires_grad=True)

    def run() -> torch.Tensor:
        with pytest.raises(RuntimeError):
            F.scaled_dot_product_attention(x, torch.randn(3, 5), x)
        return x.sin()

    found = recorded(run)
    assert all(row.composite is None for row in found.rows if "sin" in row.op)


def test_each_call_counts_in_the_dtype_that_it_returned() -> None:
    x = torch.randn(4, 4, requires_grad=True)

    def run() -> torch.Tensor:
        return F.dropout(F.dropout(x.bfloat16(), 0.5).float(), 0.5)

    assert named(recorded(run), "dropout") == {
        (phase, dtype, 1) for phase in ("forward", "backward") for dtype in ("float32", "bfloat16")
    }


def test_one_kernel_and_products_in_one_module_are_two_calls() -> None:
    one, other = attention(0.0), attention(0.5)
    assert named(recorded(lambda: one() + other()), "attention") == {
        ("forward", "bfloat16", 2), ("backward", "bfloat16", 2),
    }  # fmt: skip


def test_who_overrides_attention_still_finds_it_in_its_place() -> None:
    class Replacing(TorchFunctionMode):
        found = False

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.found |= func is F.scaled_dot_product_attention
            return func(*args, **kwargs or {})

    with Replacing() as replacing:
        recorded(attention(0.0))
    assert replacing.found
    bias, query = causal_lower_right(4, 8), torch.randn(1, 2, 4, 8)
    keys = torch.randn(1, 2, 8, 8)
    record = OpRecord()
    with record.watching():
        watched = F.scaled_dot_product_attention(query, keys, keys, bias)
    assert torch.equal(watched, F.scaled_dot_product_attention(query, keys, keys, bias))
