"""Bisection: the smallest set that passes, and in how many trials."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_amp.experiment.minimal_set import smallest

NAMES = [f"layers.{number}" for number in range(60)]


def needing(*planted):
    """An oracle that wants all of these, and the sets that it was asked about."""
    asked = []

    def passes(kept):
        asked.append(kept)
        return set(planted) <= kept

    return passes, asked


def test_three_among_sixty_are_found_in_at_most_forty_trials_wherever_they_are() -> None:
    draw = random.Random(0)
    trials = []
    for _ in range(2000):
        planted = draw.sample(NAMES, 3)
        passes, _ = needing(*planted)
        found = smallest(NAMES, passes)
        assert set(found.names) == set(planted)
        trials.append(found.trials)
    assert max(trials) <= 40
    assert sum(trials) / len(trials) < 25


@given(st.sets(st.sampled_from(NAMES), max_size=8), st.permutations(NAMES))
def test_any_planted_set_is_found_in_the_order_of_the_names(planted, names) -> None:
    passes, asked = needing(*planted)
    found = smallest(names, passes)
    assert list(found.names) == [name for name in names if name in planted]
    assert found.trials == len(asked) == len(set(asked))


def test_nothing_is_kept_where_it_passes_already() -> None:
    found = smallest(NAMES, lambda _: True)
    assert (found.names, found.trials) == ((), 1)


def test_where_not_even_all_of_them_help_that_is_said_after_two_trials() -> None:
    found = smallest(NAMES, lambda _: False)
    assert (found.names, found.trials) == (None, 2)
    assert smallest([], lambda _: False).names is None


def test_of_several_that_would_do_the_earlier_is_taken() -> None:
    """A module and the one around it: leaves come first."""
    assert smallest(["a.b", "a.c", "a"], lambda kept: bool(kept & {"a.c", "a"})).names == ("a.c",)


@given(st.lists(st.sets(st.integers(0, 9), min_size=1), min_size=1, max_size=5))
def test_what_comes_out_passes_and_no_longer_without_any_one_of_it(ways) -> None:
    """Any oracle that is satisfied by any one of several sets, and by more."""
    passes = lambda kept: any({str(n) for n in way} <= kept for way in ways)  # noqa: E731
    names = [str(number) for number in range(10)]
    found = set(smallest(names, passes).names)
    assert passes(found)
    assert not any(passes(found - {name}) for name in found)


@pytest.mark.parametrize("seed", range(30))
def test_an_oracle_that_is_not_quite_monotone_still_gets_a_set_that_passes(seed) -> None:
    draw = random.Random(seed)
    planted = set(draw.sample(NAMES, 2))
    noise = {}

    def passes(kept):
        return noise.setdefault(kept, planted <= kept and (draw.random() < 0.9 or len(kept) > 50))

    found = smallest(NAMES, passes)
    if found.names is not None:
        assert passes(frozenset(found.names))
