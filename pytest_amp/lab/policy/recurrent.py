"""Run an LSTM in a reduced dtype as one kernel for each layer and direction, as cuDNN does.

A CPU has such a kernel for float32, and else computes the cells one by one, which takes six times
as long. `arithmetic` lets this kernel take the reduced dtypes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_LSTM = 2  # oneDNN's number for it
_GATES = 4

Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def is_fused(inputs: torch.Tensor, hidden: Sequence[torch.Tensor]) -> bool:
    """Return whether there is a kernel for it: for reduced dtypes, and without projections."""
    mkldnn = torch.backends.mkldnn
    return (
        mkldnn.is_available()
        and getattr(mkldnn, "enabled", True)
        and inputs.dtype in (torch.float16, torch.bfloat16)
        and inputs.numel() > 0
        and hidden[0].shape == hidden[1].shape
    )


def lstm(
    inputs: torch.Tensor,
    hidden: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Three:
    """Return what ``aten::lstm.input`` returns: the outputs, and the last hidden and cell states.

    Args:
        inputs: (time, batch, features), or with the batch first.
        hidden: the states to begin with, each (layers * directions, batch, hidden).
        weights: for each layer and direction two matrices and, with biases, two vectors.
        has_biases: whether there are biases.
        layers: how many layers there are.
        dropout: the share of outputs that are dropped between layers.
        train: whether it trains.
        bidirectional: whether there are two directions.
        batch_first: whether the batch is the first dimension of inputs and outputs.
    """
    directions, each = (2 if bidirectional else 1), (4 if has_biases else 2)
    made = (inputs.transpose(0, 1) if batch_first else inputs).contiguous()
    last_h, last_c = [], []
    for layer in range(layers):
        both = []
        for direction in range(directions):
            place = layer * directions + direction
            own = list(weights[place * each : (place + 1) * each])
            if not has_biases:
                own += [own[0].new_zeros(own[0].shape[0])] * 2
            states = hidden[0][place].contiguous(), hidden[1][place].contiguous()
            out, h, c, _ = torch.ops.aten.mkldnn_rnn_layer(
                made, *own, *states, direction == 1, [], _LSTM, own[0].shape[0] // _GATES,
                layers, has_biases, bidirectional, False, train,
            )  # fmt: skip
            both.append(out)
            last_h.append(h)
            last_c.append(c)
        made = torch.cat(both, -1) if bidirectional else both[0]
        if dropout and train and layer < layers - 1:
            made = torch.dropout(made, dropout, True)
    outputs = made.transpose(0, 1) if batch_first else made
    return outputs, torch.stack(last_h), torch.stack(last_c)
