"""What speedup a device could show, foreseen from the operators that both arms ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from pytest_amp import units

HERE = "here"
_WORDS: Mapping[str, str] = {
    "products": "matrix products", "memory": "memory traffic", "casts": "casts",
    "host": "launches and the host",
}  # fmt: skip


@dataclass(frozen=True)
class Forecast:
    """A range of speedups by a roofline model, and what bounds the amp arm's step there.

    Attributes:
        device (str): the GPU, such as "A100"; "here" is the device that the test ran on, with
            ceilings that were measured.
        low (float | None): the lower end; None if there is no forecast.
        high (float | None): the upper end. For "here" it is the attainable speedup: that of an amp
            step whose operators all reach the device's ceilings.
        shares (Mapping[str, float]): the shares of the amp arm's step that are "products", "memory"
            traffic of other operators, "casts", and "host", in which the device waits.
        reason (str | None): why there is no forecast.
    """

    device: str
    low: float | None = None
    high: float | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None

    summaries: ClassVar = ("bound",)

    @property
    def bound(self) -> str | None:
        """The largest of the shares by its name; None without a forecast."""
        return max(self.shares, key=self.shares.__getitem__, default=None)

    @property
    def bounds(self) -> str:
        """The shares in words, the largest first; "" without a forecast."""
        ordered = sorted(self.shares.items(), key=lambda each: -each[1])
        first, *others = [
            f"{_WORDS.get(name, name)} {units.share(share)}"
            for name, share in ordered
            if share >= SHOWN or name == self.bound
        ] or [""]
        return ", ".join([f"{first} of the step", *others]) if first else ""

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"no forecast, because {self.reason}"
        return f"{self.range}; {self.bounds}"

    @property
    def range(self) -> str:
        """The range in words; "-" without a forecast."""
        if self.low is None or self.high is None:
            return units.NOTHING
        return f"{units.ratio(self.low)} to {units.ratio(self.high)}"


# Smaller shares are not told.
SHOWN = 0.05
