"""The bytes that operators move, against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from pytest_amp.lab.watch.operators import OpRecord

KB = 1000  # 250 numbers in float32


def moved(call: Callable[[], object]) -> dict[str, int]:
    """Return the bytes that each operator of a call moved."""
    record = OpRecord()
    with record.watching():
        call()
    found: dict[str, int] = {}
    for row in record.operators().rows:
        found[row.op.removeprefix("aten::")] = found.get(row.op, 0) + row.moved
    return found


def floats(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape)


a, b = floats(250), floats(250)
WIDE = floats(8, 250)
TABLE, MANY, IDS = floats(1000, 250), floats(4, 250), torch.tensor([1, 2, 3, 3])


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        pytest.param(lambda: a + b, {"add": 3 * KB}, id="two operands and a result"),
        pytest.param(lambda: a.add_(b), {"add_": 3 * KB}, id="in place"),
        pytest.param(a.bfloat16, {"_to_copy": 3 * KB // 2}, id="a cast"),
        pytest.param(lambda: MANY.t()[1:].view(-1, 4), {"t": 0, "slice": 0, "view": 0}, id="views"),
        pytest.param(lambda: torch.empty_like(a), {"empty_like": 0}, id="memory only"),
        pytest.param(lambda: a.copy_(b), {"copy_": 2 * KB}, id="a copy overwrites"),
        pytest.param(a.zero_, {"zero_": KB}, id="a fill overwrites"),
        pytest.param(lambda: torch.zeros_like(a), {"zeros_like": KB}, id="a fill of its own"),
        pytest.param(a.exponential_, {"exponential_": KB}, id="a draw overwrites"),
        pytest.param(
            lambda: a.clone().unsqueeze_(0), {"clone": 2 * KB, "unsqueeze_": 0}, id="in-place view"
        ),
        pytest.param(
            lambda: TABLE.index_put_((IDS,), MANY), {"index_put_": 12 * KB}, id="rows that are put"
        ),
        pytest.param(lambda: F.embedding(IDS, TABLE), {"embedding": 8 * KB}, id="rows of a table"),
        pytest.param(lambda: TABLE[IDS], {"index": 8 * KB}, id="rows by index"),
        pytest.param(
            lambda: TABLE.index_add_(0, IDS, MANY), {"index_add_": 12 * KB}, id="sums in rows"
        ),
        pytest.param(
            lambda: WIDE + a.expand(8, 250), {"expand": 0, "add": 17 * KB}, id="an expanded operand"
        ),
        pytest.param(
            lambda: torch._foreach_add_([a, b], [b, a]), {"_foreach_add_": 6 * KB}, id="lists"
        ),
        pytest.param(
            lambda: MANY @ TABLE.t(), {"t": 0, "mm": 4 * KB + 1000 * KB + 16 * KB}, id="a product"
        ),
    ],
)
def test_each_tensor_is_moved_once(call: Callable[[], object], expected: dict[str, int]) -> None:
    assert moved(call) == expected


def test_what_alike_calls_move_adds_up() -> None:
    record = OpRecord()
    with record.watching():
        for _ in range(3):
            torch.neg(a)
    (row,) = record.operators().rows
    assert (row.count, row.moved) == (3, 6 * KB)


def test_of_a_sparse_tensor_only_what_is_there_is_moved() -> None:
    table = torch.nn.Embedding(10_000, 250, sparse=True)
    record = OpRecord()
    with record.watching():
        table(IDS).sum().backward()
    rows = record.operators().rows
    assert sum(row.moved for row in rows) < 100 * KB
