"""How far both arms' losses are from those of a run in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pytest_amp import units


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

    def __str__(self) -> str:
        return (
            f"amp's error against float64 is {_times(self.multiple)} times fp32's, and rounding to "
            f"{self.dtype} explains {_times(self.explained)} times"
        )

    def said(self, names: Mapping[str, str]) -> str:
        """Return both errors on one line, with what the arms are called."""
        return (
            f"{names['fp32']} is {self.reference_error:.1e} off, {names['amp']} "
            f"{self.candidate_error:.1e}: {_times(self.multiple)} times as much, where rounding to "
            f"{self.dtype} explains {_times(self.explained)} ({units.plural(self.steps, 'step')})"
        )


def _times(multiple: float) -> str:
    return f"{multiple:.2g}" if multiple < 10 else units.count(multiple)
