"""Operators that a CPU has no fast kernel for in one of the two dtypes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from pytest_amp import units
from pytest_amp.observations import Observations, OpRow

# How many times as long it takes without a fast kernel: emulated products take 10 to 70 times.
SLOWER = 20.0
# What a quicker step takes is soon noise, and nobody waits for it.
LEAST_S = 0.02
# An operator is named that makes up this share of what the step takes longer.
NAMED = 0.1
# How much of the inspected step's excess the arms' fastest steps must show.
REPEATED = 0.5


def without_fast_ones(seen: Observations) -> str | None:
    """Which operators make one arm's step take so much longer than the other's; None if none do.

    Judged by the seconds of the inspected step, which only a CPU tells operator by operator. That
    is a single step, so the arms' fastest plain steps must show at least half of the same excess:
    what else runs on the machine slows one step, and not the fastest of many.
    """
    if seen.device_type != "cpu" or seen.amp.operators is None or seen.fp32.operators is None:
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
    """Seconds of each."""
    total: dict[str, float] = defaultdict(float)
    for row in rows:
        total[row.op] += row.seconds
    return dict(total)
