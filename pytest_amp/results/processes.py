"""What each of several processes measured of one test."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_amp import units


@dataclass(frozen=True)
class ProcessRun:
    """What one process measured of the speedup.

    Attributes:
        value (float | None): the median of its pairs' ratios; None if it has no figure.
        low (float | None): the lower bound of the median ratio in that process.
        high (float | None): the upper bound.
        pairs (int): how many pairs of blocks it timed.
        verdict (str): the verdict of its own gate, or "error".
        problem (str | None): why it has no figure.
    """

    value: float | None
    low: float | None
    high: float | None
    pairs: int
    verdict: str
    problem: str | None = None

    def __str__(self) -> str:
        if self.value is None:
            return self.problem or "no figure"
        return units.estimate(self.value, self.low, self.high)
