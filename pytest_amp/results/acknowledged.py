"""A change for the worse that was accepted, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Accepted = Literal["speedup", "memory", "loss", "missing"]


@dataclass(frozen=True)
class Acknowledged:
    """What was accepted, and how far it may go.

    Attributes:
        test: the test's id.
        metric: what got worse; "missing" if the test itself is gone.
        of: what comparable results share, as the storage's keys list it: the test, device, dtype
            and settings. Of a missing test it is the id alone.
        figures: the figures that were accepted. Of a speedup "value", "low" and "high"; of the
            memory "peak_bytes" of the amp arm; of the loss the mean of the amp arm's last losses,
            by the loss's name.
        since: when the result that was accepted was measured, as ISO 8601. Newer baselines need no
            acknowledgement.
        reason: why, as the person said it who accepted it.
    """

    test: str
    metric: Accepted
    of: tuple[Any, ...]
    figures: Mapping[str, float]
    since: str
    reason: str
