"""Seed the fixtures of an amp test, and restore the random number generators after it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

_SEEDING = pytest.StashKey[pytest.Item]()  # the test whose seed is to be set
_AFTER_FIXTURES = pytest.StashKey[Callable[[], None]]()
_RANDOM = pytest.StashKey[Callable[[], None]]()  # restores the random number generators


def seed_before_fixtures(item: pytest.Item) -> None:
    """Ask for the seed to be set before the test's fixtures, so that each run has the same data."""
    item.config.stash[_SEEDING] = item


def seed(config: pytest.Config) -> None:
    """Set the seed, if a test waits for it.

    This happens before the first fixture, and so after other plugins have seeded in their setup.
    """
    item = config.stash.get(_SEEDING, None)
    if item is None:
        return
    del config.stash[_SEEDING]
    from pytest_amp.lab.machine.global_state import remembered, seed_all
    from pytest_amp.plugin import measuring

    if _RANDOM not in config.stash:
        config.stash[_RANDOM] = remembered()
    seed_all(measuring.settings_of(item).seed)


def keep(item: pytest.Item) -> None:
    """Note the generators' state as the fixtures have left it."""
    from pytest_amp.lab.machine.global_state import remembered

    item.stash[_AFTER_FIXTURES] = remembered()


def draw_on(item: pytest.Item) -> None:
    """Go on from the state that was noted: pytest-randomly seeds again before the test's function.

    Its seed is another one in each run.
    """
    put_back = item.stash.get(_AFTER_FIXTURES, None)
    if put_back is not None:
        put_back()


def unseed(config: pytest.Config) -> None:
    """Restore the generators, so that later tests draw as if the amp test had not run."""
    if _SEEDING in config.stash:
        del config.stash[_SEEDING]
    if _RANDOM in config.stash:
        config.stash[_RANDOM]()
        del config.stash[_RANDOM]
