"""What a whole run did not answer, though it was meant to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

GapKind = Literal["unasked", "missing"]
_WORDS: Mapping[GapKind, str] = {"unasked": "NOT GATED", "missing": "MISSING"}


@dataclass(frozen=True)
class Gap:
    """A gate that no test was asked, or a test of the baseline that was not measured.

    Attributes:
        kind: "unasked" or "missing".
        text: what it is, in a sentence without its full stop.
        fails: whether it fails the run, as ``--amp-strict`` makes it do.
    """

    kind: GapKind
    text: str
    fails: bool

    @property
    def word(self) -> str:
        """The word or two that a line about it begins with."""
        return _WORDS[self.kind]

    @property
    def consequence(self) -> str:
        """What ``--amp-strict`` makes of it."""
        return "--amp-strict fails the run" if self.fails else "--amp-strict would fail the run"
