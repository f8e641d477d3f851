"""How far both arms' losses are from those of a run in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pytest_amp import units

# Rounding to a dtype explains errors that are about as many times fp32's as the dtype is coarser.
# Over ten small models, healthy ones stay below 1.3 times as many in bfloat16 and 3.7 in float16,
# and most faults that move a loss are beyond (benchmarks/parity.py).
BEYOND = 5.0


@dataclass(frozen=True)
class Anchor:
    """The errors of one loss, as root mean squares over steps, relative to the loss.

    Attributes:
        key (str): the loss's name.
        reference_error (float): how far fp32's losses are from those in float64.
        candidate_error (float): how far amp's are.
        explained (float): by how many times the amp dtype is coarser than float32.
        dtype (str): the reduced dtype.
        steps (int): how many steps ran in float64.
    """

    key: str
    reference_error: float
    candidate_error: float
    explained: float
    dtype: str
    steps: int

    summaries: ClassVar = ("multiple",)

    @property
    def multiple(self) -> float:
        """The candidate's error as a multiple of the reference's own."""
        return self.candidate_error / self.reference_error

    @property
    def is_beyond_rounding(self) -> bool:
        """Whether the dtype's precision does not explain the candidate's error."""
        return self.multiple > BEYOND * self.explained

    def __str__(self) -> str:
        return (
            f"its error against float64 is {units.count(self.multiple)} times fp32's, and rounding "
            f"to {self.dtype} explains {units.count(self.explained)}"
        )

    def said(self, names: Mapping[str, str]) -> str:
        """Return both errors on one line, with what the arms are called."""
        return (
            f"{names['fp32']} is {units.share(self.reference_error)} off, {names['amp']} "
            f"{units.share(self.candidate_error)}, {units.count(self.multiple)} times as much; "
            f"rounding to {self.dtype} explains {units.count(self.explained)} "
            f"({units.plural(self.steps, 'step')})"
        )
