"""The line that changes a gradient, however it does so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pytest_amp.lab.watch.gradient_edits import GradientEdits


def in_place(param: torch.Tensor) -> None:
    param.grad.mul_(0.5)


def clipped(param: torch.Tensor) -> None:
    nn.utils.clip_grad_norm_([param], 1e-3)


def clipped_by_value(param: torch.Tensor) -> None:
    nn.utils.clip_grad_value_([param], 1e-3)


def through_data(param: torch.Tensor) -> None:
    param.grad.data.clamp_(-1e-3, 1e-3)


def assigned(param: torch.Tensor) -> None:
    param.grad = param.grad * 0.5


def in_a_view(param: torch.Tensor) -> None:
    param.grad[0].zero_().add_(1.0)


def changed_by(edit: Callable[[torch.Tensor], None]) -> str | None:
    param, other = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    edits = GradientEdits()
    with edits:
        scratch = torch.zeros(4)
        scratch.add_(1.0)
        edits.forget()
        (param.sum() + other.sum()).backward()
        edit(param)
    assert edits.line_of([other]) is None
    return edits.line_of([param])


@pytest.mark.parametrize(
    "edit", [in_place, clipped, clipped_by_value, through_data, assigned, in_a_view]
)
def test_the_line_is_the_users(edit: Callable[[torch.Tensor], None]) -> None:
    line = edit.__code__.co_firstlineno + 1
    assert changed_by(edit) == f"tests/lab/watch/test_gradient_edits.py:{line}"


def test_what_only_reads_empties_or_unscales_changes_nothing() -> None:
    def reads(param: torch.Tensor) -> None:
        assert param.grad.norm() > 0
        torch._amp_foreach_non_finite_check_and_unscale_(
            [param.grad], torch.zeros(1), torch.ones(1)
        )
        param.grad.zero_()
        param.grad = None

    assert changed_by(reads) is None


def removed(param: torch.Tensor) -> None:
    param.grad = None


def zeroed(param: torch.Tensor) -> None:
    param.grad.zero_()


def zeroed_by_an_optimizer(param: torch.Tensor) -> None:
    torch.optim.SGD([param], lr=0.1).zero_grad(set_to_none=False)


@pytest.mark.parametrize("empty", [removed, zeroed, zeroed_by_an_optimizer])
def test_what_empties_is_placed(empty: Callable[[torch.Tensor], None]) -> None:
    param, other = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    edits = GradientEdits()
    with edits:
        (param.sum() + other.sum()).backward()
        torch.ones(4).zero_()
        empty(param)
    line = empty.__code__.co_firstlineno + 1
    assert edits.emptied([other]) is None
    assert edits.emptied([other, param]) == f"tests/lab/watch/test_gradient_edits.py:{line}"
    assert edits.line_of([param]) is None
    edits.forget()
    assert edits.emptied([param]) is None


def test_a_hook_is_placed_where_it_was_put_on() -> None:
    param = nn.Parameter(torch.ones(2))
    edits = GradientEdits()
    with edits:
        param.register_hook(lambda grad: grad.clamp(max=1e-3))
        edits.forget()
        param.sum().backward()
    assert edits.line_of([param]).startswith("tests/lab/watch/test_gradient_edits.py:")


def test_a_subclass_and_a_sparse_gradient_do_no_harm() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    edits = GradientEdits()
    with edits:
        table(torch.tensor([1])).sum().backward()
        table.weight.grad.mul_(0.5)
    edits.line_of([table.weight])
