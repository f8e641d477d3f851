"""Where both loss curves ended with one of several seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_amp import units


@dataclass(frozen=True)
class SeedTails:
    """The means of the last quarters of both arms' loss curves.

    Attributes:
        seed (int): the seed.
        fp32 (Mapping[str, float]): fp32's, by the loss's name.
        amp (Mapping[str, float]): amp's.
    """

    seed: int
    fp32: Mapping[str, float]
    amp: Mapping[str, float]

    def __str__(self) -> str:
        parts = []
        for key, fp32 in self.fp32.items():
            change = units.signed((self.amp[key] - fp32) / abs(fp32)) if fp32 else units.NOTHING
            parts.append(change if len(self.fp32) == 1 else f"{key} {change}")
        return f"{self.seed}: {' '.join(parts)}"
