"""Align two arms' forward passes operator by operator, and find where one leaves the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher

from pytest_amp.observations import TIMES_ROUNDING, Computed, Departure, Sample

# The spacing of numbers just above 1.
EPSILONS: Mapping[str, float] = {"float16": 2**-10, "bfloat16": 2**-7}
# An output has left if it is off by this many epsilons, by this many times what its inputs are off,
# and by TIMES_ROUNDING times what the rounding of all products does to it.
_EPSILONS_OFF = 8
_TIMES_INPUTS = 6
_DIFFERENCES = frozenset(("add", "rsub", "sub"))
_ROUNDED_OFF = 16 * 2**-23
# Rounding excuses an operator only up to here. Where rounding a product alone turns what follows
# into something else, as with the phase of a sine, it is the product that should not be rounded.
_MOST_BY_ROUNDING = 0.2


def departure(
    fp32: Sequence[Computed],
    amp: Sequence[Computed],
    dtype: str,
    rounded: Sequence[Computed] = (),
) -> Departure | None:
    """Return the first operator whose output leaves fp32's by more than its inputs had.

    Args:
        fp32: what the reference computed.
        amp: what the amp arm computed from the same start.
        dtype: the dtype that the amp arm rounds to.
        rounded: what the reference computes if the operands and results of its products are
            rounded: how far an output may be off although nothing is wrong with its operator.
    """
    by_rounding = {id(one): distance(one.out, other.out) for one, other in _aligned(fp32, rounded)}
    for expected, found in _aligned(fp32, amp):
        if _is_noise(expected):
            continue
        off = distance(expected.out, found.out)
        before = _inputs_off(expected, found)
        if leaves(off, before, dtype, by_rounding.get(id(expected), 0.0)):
            return Departure(
                found.op, found.module, found.location, found.dtype, off, before,
                by_rounding.get(id(expected)), found.made_at, found.products,
            )  # fmt: skip
    return None


def inputs_off(fp32: Sequence[Computed], amp: Sequence[Computed]) -> dict[str, float]:
    """Return by line how far the inputs of its operators are off at most."""
    found: dict[str, float] = {}
    for expected, each in _aligned(fp32, amp):
        if each.location is not None:
            off = _inputs_off(expected, each)
            found[each.location] = max(off, found.get(each.location, 0.0))
    return found


def leaves(off: float, inputs_off: float, dtype: str, by_rounding: float = 0.0) -> bool:
    """Return whether something is further off than a dtype and what it was made of explain.

    Args:
        off: how far it is off.
        inputs_off: how far what it was made of is off.
        dtype: the dtype that the amp arm rounds to.
        by_rounding: how far it is off in the reference once products are rounded.
    """
    epsilon = EPSILONS[dtype]
    return off > max(
        _EPSILONS_OFF * epsilon,
        _TIMES_INPUTS * (inputs_off + epsilon),
        min(TIMES_ROUNDING * by_rounding, _MOST_BY_ROUNDING),
    )


def _is_noise(expected: Computed) -> bool:
    """Return whether a sum or difference is nothing but what float32 rounded off what went in.

    So it is where a program checks that probabilities add up to one.
    """
    if expected.op.removeprefix("aten::").removesuffix("_") not in _DIFFERENCES:
        return False
    largest = max((each[0] for each in expected.inputs if each), default=0.0)
    return bool(expected.out) and expected.out[0] < _ROUNDED_OFF * largest


def distance(expected: Sample, found: Sample) -> float:
    """Return how far a tensor is from what is expected, in proportion to the expected one's norm.

    It is 0 where nothing can be said: of tensors that are not floats, or of which the expected one
    is zero or not finite. It is infinite if only the found one is not finite, or of another size.
    """
    if not expected or not found or not all(map(math.isfinite, expected)):
        return 0.0
    if len(expected) != len(found) or not all(map(math.isfinite, found)):
        return math.inf
    return math.dist(expected, found) / expected[0] if expected[0] else 0.0


def _inputs_off(expected: Computed, found: Computed) -> float:
    """Return how far the inputs are off at most; infinite if there are other ones."""
    if len(expected.inputs) != len(found.inputs):
        return math.inf
    pairs = zip(expected.inputs, found.inputs, strict=True)
    return max((distance(*pair) for pair in pairs), default=0.0)


def _aligned(
    ones: Sequence[Computed], others: Sequence[Computed]
) -> Iterator[tuple[Computed, Computed]]:
    """Pair the operators that both have, in order; each may have some that the other has not."""
    a, b = ([(each.op, each.shape, each.location) for each in side] for side in (ones, others))
    if a == b:  # as of nearly every step, and much faster
        yield from zip(ones, others, strict=True)
        return
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    for block in matcher.get_matching_blocks():
        for index in range(block.size):
            yield ones[block.a + index], others[block.b + index]
