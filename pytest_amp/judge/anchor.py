"""How far each arm's losses are from those in float64: amp's error in units of fp32's own."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from pytest_amp import units
from pytest_amp.judge import parity
from pytest_amp.observations import Losses, Observations
from pytest_amp.results.anchor import Anchor

# The distance from 1 to the next number of each type.
EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}

# Rounding to a dtype explains errors that are about as many times fp32's as the dtype is coarser.
# Over ten small models, healthy ones stay below 1.3 times as many in bfloat16, and below 3.7 in
# float16, which loses small numbers too. Most faults that move a loss are beyond these
# (benchmarks/parity.py).
BEYOND = {"float16": 15.0, "bfloat16": 5.0}
# Fewer steps in float64 say too little.
LEAST_STEPS = 4
# The first loss is computed from the same numbers. If it differs by more, it is another step.
SAME = 1e-3


def errors(seen: Observations, key: str) -> Anchor | None:
    """Return the errors of both arms' losses; None without an anchor, or if a loss is not finite.

    An error is the root mean square, over the steps that the anchor ran, of the difference to the
    loss in float64. fp32's is at least what rounding a loss to float32 makes, since it may be
    nearer by luck.
    """
    dtype = seen.ran_in
    if seen.anchor is None or dtype not in EPS or seen.recipes.amp.float8:
        return None
    exact = seen.anchor[key]
    steps = len(exact)
    fp32, amp = (curve[key][:steps] for curve in (seen.fp32.losses, parity.once_scaled(seen.amp)))
    if not all(map(math.isfinite, (*exact, *fp32, *amp))):
        return None
    size = _rms(exact)
    least = EPS["float32"] / math.sqrt(12) * size
    own = max(least, _distance(fp32, exact))
    if not size or not own:
        return None
    explained = EPS[dtype] / EPS["float32"]
    return Anchor(key, own / size, _distance(amp, exact) / size, explained, dtype, steps)


def is_beyond_rounding(found: Anchor) -> bool:
    """Return whether the dtype's precision does not explain the candidate's error."""
    return found.multiple > BEYOND[found.dtype] * found.explained


def all_errors(seen: Observations) -> tuple[Anchor, ...]:
    """Return the errors of each loss that has an anchor."""
    return tuple(found for key in seen.fp32.losses if (found := errors(seen, key)))


def unusable(anchor: Losses, fp32: Losses) -> str | None:
    """Return why losses in float64 say nothing about those in float32; None if they do."""
    if set(anchor) != set(fp32):
        return f"the step returned the losses {sorted(anchor)} in it"
    for key, curve in anchor.items():
        if len(curve) < min(LEAST_STEPS, len(fp32[key])):
            return f"a step takes too long in it (only {units.plural(len(curve), 'step')} in time)"
        if not all(map(math.isfinite, curve)):
            return "its losses are not finite"
        if len(curve) >= LEAST_STEPS and tuple(curve) == tuple(fp32[key][: len(curve)]):
            return "its losses are fp32's to the last digit, so it ran in float32"
        first, other = curve[0], fp32[key][0]
        if not abs(first - other) <= SAME * max(abs(first), abs(other)):
            return f"the first loss is {first:.6g} in it, and {other:.6g} in float32"
    return None


def _distance(ones: Sequence[float], others: Sequence[float]) -> float:
    return _rms([one - other for one, other in zip(ones, others, strict=True)])


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(statistics.fmean(value * value for value in values))
