"""AMP4xx: why mixed precision is not faster."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_amp import units
from pytest_amp.judge.rules.base import Case, Rule, Word


def no_native_support(case: Case) -> Iterator[Word]:
    """Speaks only where the harm is shown: a slowdown on a device without the fast path."""
    gate = case.gates["speedup"]
    slower = gate.high is not None and gate.high < 1
    if case.seen.native_support or not (slower or gate.verdict == "fail"):
        return
    yield Word(
        f"{case.seen.device} has no fast path for {case.seen.dtype}, which is emulated "
        f"({units.ratio(gate.value)}): gate the speed on a device that has one, with "
        "min_speedup by device",
        {"device": case.seen.device, "dtype": case.seen.dtype, "speedup": gate.value},
    )


RULES = (Rule("AMP401", no_native_support),)
