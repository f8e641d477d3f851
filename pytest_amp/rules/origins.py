"""Say in words where numbers stopped being finite, and what to do there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_amp import units
from pytest_amp.observations import REDUCED, Origin

IN_FLOAT32 = "(torch.autocast(..., enabled=False), and .float() on what goes in)"
LARGEST_FLOAT16 = 65504.0
# What helps where an input has rounded to a value at which the operator has no finite one. float32
# alone does not: what comes out is finite there, and its gradient is still beyond float16.
_INSTEAD = {
    "aten::binary_cross_entropy": "use binary_cross_entropy_with_logits, since a probability that "
    "rounds to 0 or 1 has no logarithm",
    "aten::log": "use log_softmax or logsigmoid if it is a probability's, since one that rounds to "
    f"0 has no logarithm; else keep that part in float32 {IN_FLOAT32} and what goes in above 1e-4",
}


def place(origin: Origin) -> str:
    """Return ``aten::exp in decoder at net.py:12 (float16)``, and the backward node's name."""
    module = f" in {origin.module}" if origin.module else ""
    location = f" at {origin.location}" if origin.location else ""
    marks = ", ".join(each for each in (origin.node, origin.dtype) if each)
    return f"{origin.op}{module}{location}" + (f" ({marks})" if marks else "")


def gradient(origin: Origin) -> str:
    """Say that the gradient of an operator is not finite, and what it was made of."""
    return f"the gradient of {place(origin)} is {origin.made}{at_scale(origin)}{made_of(origin)}"


def at_scale(origin: Origin) -> str:
    """Say at which loss scales it happens."""
    if origin.at_one is None:
        return ""
    return " at any scale" if origin.at_one else f" at a scale of {origin.scale:g} and finite at 1"


def made_of(origin: Origin) -> str:
    """Return the values that the first inf or NaN was made of."""
    if origin.inputs:
        values = units.listed([f"{number:.3g}" for number in origin.inputs])
        return f", made of {values}{_rounded(origin)}"
    return "" if origin.largest is None else f", from values of up to {origin.largest:.3g}"


def _rounded(origin: Origin) -> str:
    """Say what rounds to a zero among the inputs, such as an epsilon."""
    if origin.dtype != "float16" or 0 not in origin.inputs:
        return ""
    return ": float16 rounds what is below 6e-8 to 0, an epsilon too"


def remedy(origin: Origin | None, dtype: str) -> str:
    """Return what to do about it."""
    if origin is not None and origin.dtype is not None and origin.dtype not in REDUCED:
        return (
            "it is in float32 there, so look at what its inputs are computed from, and keep it "
            "away from the points at which it has no finite value"
        )
    if origin is not None and origin.op in _INSTEAD:
        return _INSTEAD[origin.op]
    if origin is not None and _is_cast_back(origin):
        return f"keep that part and what makes its inputs in float32 {IN_FLOAT32} or use bfloat16"
    beyond_range = dtype == "float16" and not (origin and 0 in origin.inputs)
    return f"keep that part in float32 {IN_FLOAT32}" + " or use bfloat16" * beyond_range


def _is_cast_back(origin: Origin) -> bool:
    """Return whether a gradient was finite in float32, and is not where it is cast to float16."""
    cast = origin.phase == "backward" and origin.dtype == "float16" and len(origin.inputs) == 1
    return cast and abs(origin.inputs[0]) > LARGEST_FLOAT16


def evidence(origin: Origin | None) -> Mapping[str, Any]:
    """Return the figures as plain JSON."""
    if origin is None:
        return {"op": None}
    return {
        "op": origin.op,
        "phase": origin.phase,
        "node": origin.node,
        "dtype": origin.dtype,
        "inputs": list(origin.inputs),
        "at_scale_1": origin.at_one,
    }
