"""Count an operator's FLOPs, by torch's own registry and by formulas for what it leaves out."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from pytest_amp.errors import unless_our_bug

__tracebackhide__ = unless_our_bug

_HEAVY = re.compile(r"conv|mm\b|mm_|matmul|attention|linear|rnn|lstm|gru|bilinear")
# On CUDA the fused part of a recurrent cell (`_thnn_`) is pointwise; its products are `mm` calls.
_NOT_HEAVY = re.compile(
    r"linear_combination|upsample|prepack|reorder|weight_size|convert|_like|_thnn_|flatten_weight"
)
_OURS = frozenset(
    {"aten", "prim", "prims", "profiler", "c10d", "_c10d_functional", "fsdp", "inductor"}
)

Formula = Callable[..., int]


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Count two products: queries x keys, and weights x values."""
    *batch, queries, dim = query.shape
    return int(2 * prod(batch) * queries * key.shape[-2] * (dim + value.shape[-1]))


def _attention_backward(_grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Count five products where the forward pass has two, since the scores are computed again."""
    return 5 * _attention(query, key, value) // 2


def _convolution_backward(grad: Any, inputs: Any, weight: Any, *rest: Any, **_: Any) -> int:
    """Count as many FLOPs as the forward pass has for each gradient, the input's and the weight's.

    torch's registry counts the weight's as if there were no groups.
    """
    _bias_sizes, *geometry, wanted = rest
    forward: Formula = flop_registry[torch.ops.aten.convolution]
    return int(sum(wanted[:2]) * forward(inputs, weight, None, *geometry, out_val=grad))


def _linear(inputs: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * int(inputs.numel()) * int(weight.shape[0])


def _linear_backward(inputs: Any, _grad: Any, weight: Any, wanted: Any, **_: Any) -> int:
    """Count one product for each gradient that is wanted, the input's and the weight's."""
    return int(sum(wanted[:2])) * _linear(inputs, weight)


def _matrix_vector(matrix: Any, *_: Any, **__: Any) -> int:
    return 2 * int(matrix.numel())


def _rnn_layer(inputs: Any, weight: Any, recurrent: Any, *_: Any, **__: Any) -> int:
    """Count, per element of the sequence, the products of input and state with their weights."""
    elements = int(inputs.numel()) // int(inputs.shape[-1])
    return 2 * elements * (int(weight.numel()) + int(recurrent.numel()))


def _rnn(inputs: Any, weights: Any, *_: Any, **__: Any) -> int:
    """Count all layers and directions: each weight meets each element of the sequence once."""
    elements = int(inputs.numel()) // int(inputs.shape[-1])
    return 2 * elements * sum(int(weight.numel()) for weight in weights if weight.ndim > 1)


def _rnn_backward(*args: Any, **kwargs: Any) -> int:
    """Count two products where the forward pass has one: the input's and the weight's gradient."""
    return 2 * _rnn(*args, **kwargs)


def _grouped(left: Any, right: Any, *_: Any, **__: Any) -> int:
    """Count grouped products: each row on the left, or column on the right, has one group only."""
    groups = int(left.shape[0]) if left.ndim == 3 and right.ndim == 2 else 1
    return 2 * int(left.numel()) * int(right.shape[-1]) // groups


# What torch's own registry counts wrongly, or leaves out, as it does much of what runs on a CPU,
# nested tensors and CUDA's own kernels.
_MORE: dict[str, Formula] = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "aten::convolution_backward": _convolution_backward,
    "aten::linear": _linear,
    "aten::linear_backward": _linear_backward,
    "aten::mkldnn_rnn_layer": _rnn_layer,
    "aten::mkldnn_rnn_layer_backward": lambda *args, **kw: 2 * _rnn_layer(*args, **kw),
    "aten::_cudnn_rnn": _rnn,
    "aten::_cudnn_rnn_backward": _rnn_backward,
    "aten::miopen_rnn": _rnn,
    "aten::miopen_rnn_backward": _rnn_backward,
    "aten::_grouped_mm": _grouped,
    "aten::_scaled_grouped_mm": _grouped,
    "aten::_scaled_mm": _grouped,
    "aten::mv": _matrix_vector,
    "aten::dot": _matrix_vector,
    "aten::vdot": _matrix_vector,
}


def operator_name(func: Any) -> str:
    """Return ``aten::mm`` for any of its overloads; a higher-order operator gets a made-up name."""
    packet = getattr(func, "_overloadpacket", None)
    return str(packet._qualified_op_name) if packet else f"higher_order::{func}"


def formula(func: Any) -> Formula | None:
    """Return what counts the FLOPs of a matrix product, convolution or attention.

    It takes the operator's arguments, and what it returned as `out_val`. For any other operator
    there is None.
    """
    packet = getattr(func, "_overloadpacket", func)
    return _MORE.get(operator_name(func)) or flop_registry.get(packet)


def flops(func: Any, args: Any, kwargs: Any, out: Any) -> int | None:
    """Count the FLOPs of a matrix product, convolution or attention; None for other operators."""
    count = formula(func)
    return None if count is None else int(count(*args, **kwargs, out_val=out))


def is_product(func: Any) -> bool:
    """Return whether an operator is a matrix product, a convolution or attention."""
    return formula(func) is not None


def is_heavy(name: str) -> bool:
    """Return whether an operator without a formula may hide such FLOPs, judging by its name."""
    namespace, _, op = name.partition("::")
    if namespace not in _OURS:
        return True
    return bool(_HEAVY.search(op)) and not _NOT_HEAVY.search(op)
