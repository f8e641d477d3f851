"""Sum up what the speed gate answers where the truth is known."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pytest_amp.judge import speed
from pytest_amp.observations import Timing

# A difference is found if this share of the answers is right, and none is wrong.
FOUND = 0.95


def threshold_for(planted: float) -> float:
    """Return the threshold halfway between an unchanged step and one slower by `planted`."""
    return float((1 + planted) ** -0.5)


class Row(NamedTuple):
    """What the gate answers about steps that are slower by one amount, and about unchanged ones.

    Attributes:
        planted: by how much they were to be slower; 0.05 is 5%.
        measured: by how much they were, by the median of all pairs.
        unchanged: how many trials of unchanged steps passed, failed (wrongly), had no answer.
        slower: how many trials of slower steps failed, passed (wrongly), had no answer.
        pairs: the median of the pairs that an answer took; None without any.
        seconds: the same in seconds.
    """

    planted: float
    measured: float | None
    unchanged: Counter[str]
    slower: Counter[str]
    pairs: float | None
    seconds: float | None

    @property
    def wrong(self) -> int:
        """How many answers were wrong."""
        return self.unchanged["fail"] + self.slower["pass"]

    @property
    def right(self) -> int:
        """How many answers were right."""
        return self.unchanged["pass"] + self.slower["fail"]

    @property
    def trials(self) -> int:
        """How many trials there were."""
        return self.unchanged.total() + self.slower.total()

    @property
    def is_found(self) -> bool:
        """Whether the gate tells steps that differ by this much apart, both ways."""
        return all(
            each.total() > 0 and each[right] >= FOUND * each.total()
            for each, right in ((self.unchanged, "pass"), (self.slower, "fail"))
        )


@dataclass
class Calibration:
    """The trials so far.

    Attributes:
        sizes: the differences to tell apart, ascending.
        error_rate: the bound on the probability of a wrong answer of each kind.
        trials: the timings by how much the second side was slower; 0 for an unchanged one.
    """

    sizes: Sequence[float]
    error_rate: float
    trials: dict[float, list[Timing]] = field(default_factory=dict)

    def add(self, planted: float, timing: Timing) -> None:
        """Add a trial."""
        self.trials.setdefault(planted, []).append(timing)

    def is_open(self, planted: float, timing: Timing) -> bool:
        """Return whether more pairs may bring an answer that this trial is to give."""
        asked = self.sizes if planted == 0 else (planted,)
        return any(
            speed.decision(timing, threshold_for(size), self.error_rate) is None for size in asked
        )

    def rows(self) -> list[Row]:
        """Return a row for each size of which there is a trial."""
        return [self._row(size) for size in self.sizes if self.trials.get(size)]

    def _row(self, size: float) -> Row:
        answers: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        taken = []
        for planted in (0.0, size):
            for timing in self.trials.get(planted, ()):
                answer, pairs = speed.first_decision(timing, threshold_for(size), self.error_rate)
                answers[planted == 0][answer or "inconclusive"] += 1
                if answer in ("pass", "fail"):
                    taken.append((pairs, pairs * timing.elapsed_s / len(timing.ratios)))
        ratios = [ratio for timing in self.trials[size] for ratio in timing.ratios]
        pairs_s = [statistics.median(each) for each in zip(*taken, strict=True)] or [None, None]
        measured = 1 / statistics.median(ratios) - 1 if ratios else None
        return Row(size, measured, answers[True], answers[False], *pairs_s)

    @property
    def spread(self) -> float | None:
        """The interquartile range of the ratios of unchanged pairs; None with too few."""
        ratios = [ratio for timing in self.trials.get(0.0, ()) for ratio in timing.ratios]
        if len(ratios) < 4:
            return None
        low, _, high = statistics.quantiles(ratios, n=4)
        return high - low

    @property
    def smallest_found(self) -> Row | None:
        """The smallest difference from which on all are found; None if the largest is not."""
        found = None
        for row in reversed(self.rows()):
            if not row.is_found:
                break
            found = row
        return found
