"""AMP109: exceptions that only one arm raises."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_amp.observations import REDUCED
from pytest_amp.rules.base import RaisedAlone, Word, rule

# Operators that write one tensor into another, and convert neither.
_WRITES = re.compile("__setitem__|index_(put|add|copy|reduce)|scatter")
_OUTSIDE = "torch.autocast(..., enabled=False)"
_IN_FLOAT32 = f"compute it in float32 (.float() before it, or inside {_OUTSIDE})"

# By what the exception's message says: the fix.
_SAID = (
    (
        "binary_cross_entropy",
        "return logits and use binary_cross_entropy_with_logits, which autocast makes safe",
    ),
    ("unsupported ScalarType", "NumPy has no such dtype: convert first, with .float().numpy()"),
    (
        "non-finite",
        "gradients overflow now and then, and a GradScaler skips such steps: do not raise for them",
    ),
    (r"not implemented for|[Ll]ow precision|[Uu]nsupported dtype", _IN_FLOAT32),
)


@rule("AMP109", RaisedAlone)
def raises_in_one_arm(raised: RaisedAlone) -> Iterator[Word]:
    """Look for an exception that one arm raises where the other runs as many steps."""
    other = "amp" if raised.arm == "fp32" else "fp32"
    where = [] if raised.op is None else [f"in {raised.op}"]
    if raised.dtypes:
        where.append(f"on {' and '.join(raised.dtypes)}")
    if raised.library is not None:
        where.append(f"at {raised.library}")
    place = f" ({' '.join(where)})" if where else ""
    yield Word(
        f"the {raised.arm} arm raises {raised.kind}{place} where the {other} arm runs: "
        f"{_fix(raised)}",
        {
            "arm": raised.arm,
            "raised": raised.message,
            "op": raised.op,
            "dtypes": list(raised.dtypes),
            "function": raised.function,
            "library": raised.library,
        },
        location=raised.location,
    )


def _fix(raised: RaisedAlone) -> str:
    if raised.arm == "fp32":
        return (
            "the reference has to run as well; a cast to a fixed dtype, which autocast makes up "
            "for, should be one to arm.dtype"
        )
    if raised.function is not None:
        return (
            f"decorate {raised.function}'s forward with torch.amp.custom_fwd and its backward with "
            "torch.amp.custom_bwd, of this device type, so that both see the same dtypes"
        )
    differ = len(raised.dtypes) > 1
    if differ and _WRITES.search(raised.op or ""):
        return "cast the source to the destination's dtype (source.to(destination.dtype))"
    for said, fix in _SAID:
        if re.search(said, raised.message):
            return fix
    if differ or re.search("dtype|scalar type", raised.message):
        return f"cast one side to the other's dtype, or keep this part out of autocast ({_OUTSIDE})"
    if raised.dtypes and raised.dtypes[0] in REDUCED:
        return _IN_FLOAT32
    return (
        "look at what reaches this line in either arm, most often a dtype; cast it before, or "
        f"keep this part out of autocast ({_OUTSIDE})"
    )
