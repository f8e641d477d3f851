"""The smallest set of names without which something passes, found in few trials.

Each round finds one more of them, by halving: the shortest beginning of the list that passes
together with what is found already ends with a name that is needed. Three names among sixty take
about twenty trials.

Source: the minimisation by halving of Junker, "QuickXplain", AAAI (2004), for a property that, as
in Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", IEEE Transactions on
Software Engineering 28 (2002), is only known by trying.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Passes = Callable[[frozenset[str]], bool]


@dataclass(frozen=True)
class Bisection:
    """What was found in so many trials: the names, in order; None where not even all pass."""

    names: tuple[str, ...] | None
    trials: int


def smallest(names: Sequence[str], passes: Passes) -> Bisection:
    """The names of which none can be left out for `passes` to hold; empty where none is needed.

    Earlier names are preferred where several would do. `passes` is asked once about each set. It
    has to hold for more names where it holds for fewer; where it does not quite, what comes out
    passes all the same, and passes no more without any one of it.
    """
    trials = _Trials(passes)
    if trials.passes(()):
        return Bisection((), trials.number)
    if not trials.passes(names):
        return Bisection(None, trials.number)
    found: list[str] = []
    left = list(names)
    while not trials.passes(found):
        needed = _shortest(left, found, trials)
        found.append(left[needed - 1])
        left = left[: needed - 1]
    for name in [*found]:
        without = [each for each in found if each != name]
        if trials.passes(without):
            found = without
    order = {name: place for place, name in enumerate(names)}
    return Bisection(tuple(sorted(found, key=order.__getitem__)), trials.number)


def _shortest(left: Sequence[str], found: Sequence[str], trials: _Trials) -> int:
    """How many names from the beginning pass together with those found: all of them do."""
    fails, enough = 0, len(left)
    while enough - fails > 1:
        middle = (fails + enough) // 2
        if trials.passes([*found, *left[:middle]]):
            enough = middle
        else:
            fails = middle
    return enough


class _Trials:
    """Counts, and remembers the answers."""

    def __init__(self, passes: Passes) -> None:
        self.number = 0
        self._passes = passes
        self._answers: dict[frozenset[str], bool] = {}

    def passes(self, names: Sequence[str]) -> bool:
        kept = frozenset(names)
        if kept not in self._answers:
            self.number += 1
            self._answers[kept] = self._passes(kept)
        return self._answers[kept]
