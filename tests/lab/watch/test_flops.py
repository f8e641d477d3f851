"""FLOPs of operators that only an accelerator runs, against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pytest_amp.lab.watch.flops import flops, is_heavy

ATEN: Any = torch.ops.aten
TIME, BATCH, WIDTH, HIDDEN = 5, 2, 6, 7


def empty(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta", dtype=torch.bfloat16)


def weights(gates: int, layers: int = 1, directions: int = 1, projected: int = 0) -> list[Any]:
    """As cuDNN is given them: per layer and direction two matrices and two biases."""
    found = []
    for layer in range(layers):
        wide = WIDTH if layer == 0 else directions * (projected or HIDDEN)
        for _ in range(directions):
            found += [empty(gates * HIDDEN, wide), empty(gates * HIDDEN, projected or HIDDEN)]
            found += [empty(gates * HIDDEN), empty(gates * HIDDEN)]
            found += [empty(projected, HIDDEN)] if projected else []
    return found


def product(gates: int, wide: int, inner: int = HIDDEN) -> int:
    return 2 * TIME * BATCH * gates * HIDDEN * (wide + inner)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(weights(4), product(4, WIDTH), id="lstm"),
        pytest.param(weights(3), product(3, WIDTH), id="gru"),
        pytest.param(weights(1), product(1, WIDTH), id="rnn"),
        pytest.param(weights(4, layers=2), product(4, WIDTH) + product(4, HIDDEN), id="two layers"),
        pytest.param(weights(4, directions=2), 2 * product(4, WIDTH), id="both directions"),
        pytest.param(
            weights(4, projected=3),
            product(4, WIDTH, 3) + 2 * TIME * BATCH * 3 * HIDDEN,
            id="projected",
        ),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_a_recurrent_layer_of_cudnn_s(given: list[Any], expected: int, packed: bool) -> None:
    inputs = empty(TIME * BATCH, WIDTH) if packed else empty(TIME, BATCH, WIDTH)
    assert flops(ATEN._cudnn_rnn.default, (inputs, given, 4), {}, None) == expected
    assert flops(ATEN._cudnn_rnn_backward.default, (inputs, given, 4), {}, None) == 2 * expected
    assert flops(ATEN.miopen_rnn.default, (inputs, given, 4), {}, None) == expected


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        pytest.param((32, 8), (4, 8, 6), 2 * 32 * 8 * 6, id="rows in groups"),
        pytest.param((4, 32, 8), (4, 8, 6), 2 * 4 * 32 * 8 * 6, id="a batch"),
        pytest.param((32, 8), (8, 6), 2 * 32 * 8 * 6, id="inner sizes in groups"),
        pytest.param((4, 32, 8), (8, 24), 2 * 32 * 8 * 24, id="columns in groups"),
    ],
)
@pytest.mark.parametrize("name", ["_grouped_mm", "_scaled_grouped_mm"])
def test_grouped_products(
    name: str, left: tuple[int, ...], right: tuple[int, ...], expected: int
) -> None:
    packet = getattr(ATEN, name, None)
    if packet is None:
        pytest.skip(f"this torch has no {name}")
    assert flops(packet.default, (empty(*left), empty(*right)), {}, None) == expected


def test_a_scaled_product() -> None:
    given = (empty(4, 8), empty(8, 6), empty(1), empty(1))
    assert flops(ATEN._scaled_mm.default, given, {}, empty(4, 6)) == 2 * 4 * 8 * 6


@pytest.mark.parametrize(
    "name",
    [
        "_thnn_fused_lstm_cell", "_thnn_fused_lstm_cell_backward_impl", "_thnn_fused_gru_cell",
        "_thnn_fused_gru_cell_backward", "_thnn_differentiable_lstm_cell_backward",
        "_cudnn_rnn_flatten_weight",
    ],
)  # fmt: skip
def test_what_a_cell_does_beside_its_products_is_pointwise(name: str) -> None:
    assert not is_heavy(f"aten::{name}")
    assert is_heavy("aten::some_lstm")


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("wanted", [(True, True, True), (False, True, False)])
def test_each_gradient_of_a_convolution_counts_what_its_forward_pass_does(
    groups: int, transposed: bool, wanted: tuple[bool, bool, bool]
) -> None:
    inputs = empty(2, 8, 10, 10)
    weight = empty(8, 8 // groups, 3, 3)
    geometry = [1, 1], [1, 1], [1, 1], transposed, [0, 0], groups
    out = ATEN.convolution(inputs, weight, None, *geometry)
    forward = 2 * 2 * 8 * (8 // groups) * 9 * 10 * 10
    given = (inputs, weight, None, *geometry)
    assert flops(ATEN.convolution.default, given, {}, out) == forward
    given = (out, inputs, weight, [8], *geometry, list(wanted))
    found = flops(ATEN.convolution_backward.default, given, {}, (inputs, weight, empty(8)))
    assert found == sum(wanted[:2]) * forward
