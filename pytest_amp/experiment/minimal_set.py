"""Find a smallest set of names that is enough for something to pass, in few trials.

Each round finds one more name by halving: take the shortest beginning of the list that passes
together with the names found so far; its last name is needed. Three names among sixty take about
twenty trials.

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
    """The result of a search.

    Attributes:
        names: the names that were found, in the given order; None if not even all of them pass.
        trials: how many sets were tried.
    """

    names: tuple[str, ...] | None
    trials: int


def smallest(names: Sequence[str], passes: Passes) -> Bisection:
    """Return a set of names that passes, and of which no single name can be left out.

    The search relies on `passes` holding for a larger set if it holds for a smaller one. If that is
    not quite so, the result still passes, and still fails without any one of its names.

    Args:
        names: the names to choose from; if several would do, earlier ones are preferred.
        passes: whether a set of names is enough; it is asked once about each set.
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
    """Return how many names from the beginning it takes to pass together with those found.

    All of them together are known to pass.
    """
    fails, enough = 0, len(left)
    while enough - fails > 1:
        middle = (fails + enough) // 2
        if trials.passes([*found, *left[:middle]]):
            enough = middle
        else:
            fails = middle
    return enough


class _Trials:
    """Counts the trials, and remembers their answers."""

    def __init__(self, passes: Passes) -> None:
        self.number = 0
        self._passes = passes
        self._answers: dict[frozenset[str], bool] = {}

    def passes(self, names: Sequence[str]) -> bool:
        """Return whether these names are enough; ask only if that is not known yet."""
        kept = frozenset(names)
        if kept not in self._answers:
            self.number += 1
            self._answers[kept] = self._passes(kept)
        return self._answers[kept]
