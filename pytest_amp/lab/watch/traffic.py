"""Count the bytes that an operator reads from memory and writes to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.tensors import Tensors, floats, memory, plain_parts, size

__tracebackhide__ = unless_our_bug

# Counts the bytes that a call moves, by its arguments and its floating point inputs and outputs.
Traffic = Callable[[Any, Tensors, Tensors], int]

# What returns another view of its input, or memory that nobody has written to.
_MOVES_NOTHING = frozenset(
    {"_unsafe_view", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk",
     "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided",
     "unsqueeze_", "squeeze_", "t_", "transpose_", "as_strided_", "detach_"}
)  # fmt: skip
# What takes its first input for its shape and dtype alone.
_FILLS = frozenset(
    {"full_like", "ones_like", "rand_like", "randint_like", "randn_like", "zeros_like",
     "new_full", "new_ones", "new_zeros"}
)  # fmt: skip
# What reads as many elements of its first input as it returns.
_PICKS = frozenset({"embedding", "gather", "index", "index_select", "take"})
# What reads and writes as many elements of its first input as its second one has.
_PUTS = frozenset(
    {"index_add_", "index_copy_", "index_put", "index_put_", "put_", "scatter_", "scatter_add_"}
)
# What is smaller is not worth asking whether it is expanded.
_LARGE = 2**12
# What writes to its first input without reading it.
_OVERWRITES = frozenset(
    {"bernoulli_", "cauchy_", "copy_", "exponential_", "fill_", "geometric_", "log_normal_",
     "normal_", "random_", "uniform_", "zero_"}
)  # fmt: skip


def traffic(func: Any, name: str) -> Traffic:
    """Return what counts the bytes of floating point numbers that a call of an operator moves.

    Each tensor counts once, as if the caches held whatever is needed again.

    Args:
        func: the operator.
        name: its name, as `operator_name` returns it.
    """
    op = name.removeprefix("aten::")
    if getattr(func, "is_view", False) or op in _MOVES_NOTHING:
        return _nothing
    if op in _PICKS:
        return _picked
    if op in _PUTS:
        return _put
    if op in _FILLS:
        return _filled
    return _overwritten if op in _OVERWRITES else _read_and_written


def _nothing(_args: Any, _inputs: Tensors, _outputs: Tensors) -> int:
    return 0


def _filled(_args: Any, _inputs: Tensors, outputs: Tensors) -> int:
    return _bytes(outputs)


def _picked(_args: Any, _inputs: Tensors, outputs: Tensors) -> int:
    return 2 * _bytes(outputs)


def _put(_args: Any, inputs: Tensors, _outputs: Tensors) -> int:
    return 3 * _bytes(inputs[1:])


def _overwritten(_args: Any, inputs: Tensors, outputs: Tensors) -> int:
    return _bytes(inputs[1:]) + _bytes(outputs)


def _read_and_written(args: Any, inputs: Tensors, outputs: Tensors) -> int:
    """Count inputs and outputs; an operator that returns nothing writes to its first argument."""
    return _bytes(inputs) + _bytes(outputs or floats(args[:1]))


def _in_parts(tensor: torch.Tensor) -> int:
    """Count the bytes of a tensor that is held in parts, as a sparse one is."""
    parts = plain_parts(tensor)
    return size(tensor) if parts is None else sum(map(size, parts))


def _bytes(tensors: Tensors) -> int:
    """Count the bytes of tensors, and of an expanded one those that it has in memory."""
    total = 0
    for tensor in tensors:
        bytes_ = size(tensor)
        if bytes_ > _LARGE:
            held = memory(tensor)
            bytes_ = _in_parts(tensor) if held is None else min(bytes_, held.nbytes())
        total += bytes_
    return total
