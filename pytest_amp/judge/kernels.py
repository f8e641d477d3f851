"""Find operators for which a CPU has no fast kernel in one of the two dtypes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from pytest_amp import units
from pytest_amp.observations import Observations, OpRow

# A step without fast kernels takes this many times as long. Emulated products take 10 to 70 times.
SLOWER = 20.0
# Shorter steps are left alone: their times are mostly noise, and nobody waits for them.
LEAST_S = 0.02
# An operator is named if it accounts for this share of the additional time.
NAMED = 0.1
# The arms' fastest steps must show this share of the additional time of the inspected step.
REPEATED = 0.5


def without_fast_ones(seen: Observations) -> str | None:
    """Return a sentence about operators that make one arm's step far slower; None if none do.

    They are found by the seconds that each operator took in the inspected step, which are known on
    a CPU only. That is a single step, which other programs on the machine may have slowed. So the
    difference between the arms' fastest plain steps must be at least half as large.
    """
    if seen.rules_of != "cpu" or seen.amp.operators is None or seen.fp32.operators is None:
        return None
    amp, fp32 = _by_operator(seen.amp.operators.rows), _by_operator(seen.fp32.operators.rows)
    excess_s = seen.amp.fastest_step_s - seen.fp32.fastest_step_s
    for arm, slow, fast, repeated_s in (
        ("an amp", amp, fp32, excess_s),
        ("an fp32", fp32, amp, -excess_s),
    ):
        took_s, other_s = sum(slow.values()), sum(fast.values())
        if took_s < LEAST_S or took_s <= SLOWER * other_s:
            continue
        if repeated_s < REPEATED * (took_s - other_s):
            continue
        longer_s = {op: seconds - fast.get(op, 0.0) for op, seconds in slow.items()}
        named = sorted(
            (op for op in longer_s if longer_s[op] >= NAMED * (took_s - other_s)),
            key=lambda op: -longer_s[op],
        )
        return (
            f"{arm} step takes {took_s / other_s:.0f} times as long as the other arm's here "
            f"({units.duration(took_s)}): this CPU has no fast kernel for {' and '.join(named)} in "
            f"{seen.dtype if slow is amp else 'float32'}; take another dtype (--amp-dtype) or "
            "fewer steps (--amp-steps), and gate the speed on a GPU"
        )
    return None


def _by_operator(rows: Iterable[OpRow]) -> dict[str, float]:
    """Return the seconds that each operator took in all."""
    total: dict[str, float] = defaultdict(float)
    for row in rows:
        total[row.op] += row.seconds
    return dict(total)
