"""A change for the worse that was accepted, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Accepted = Literal["speedup", "memory", "loss", "missing", "new"]


@dataclass(frozen=True)
class Acknowledged:
    """What was accepted, how far it may go, and for how long.

    Attributes:
        test: the test's id.
        metric: what got worse; "missing" if the test itself is gone, and "new" if it has no
            baseline yet.
        of: what comparable results share, as the storage's keys list it: the test, device, dtype
            and settings. Of a missing or new test it is the id alone.
        figures: the figures that were accepted. Of a speedup "value", "low" and "high"; of the
            memory "peak_bytes" of the amp arm; of the losses that got worse the mean of the amp
            arm's last values, by the loss's name.
        until: as ISO 8601. A baseline that was measured later is the measure again, and a test is
            new no longer.
        reason: why, as the person said it who accepted it.
    """

    test: str
    metric: Accepted
    of: tuple[Any, ...]
    figures: Mapping[str, float]
    until: str
    reason: str
