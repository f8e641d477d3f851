"""The seed that an amp test's fixtures are made from, and the numbers behind it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_amp.plugin.measuring import settings_of

_SEEDING = pytest.StashKey[pytest.Item]()  # the test whose seed is to be set
_RANDOM = pytest.StashKey[Callable[[], None]]()  # what puts the random numbers back


def seed_before_fixtures(item: pytest.Item) -> None:
    """Have an amp test's fixtures made from its seed, so that each run has the same data."""
    item.config.stash[_SEEDING] = item


def seed(config: pytest.Config) -> None:
    """Before the first fixture, and so after whatever other plugins seed in their setup."""
    item = config.stash.get(_SEEDING, None)
    if item is None:
        return
    del config.stash[_SEEDING]
    from pytest_amp.lab.machine.global_state import remembered, seed_all

    if _RANDOM not in config.stash:
        config.stash[_RANDOM] = remembered()
    seed_all(settings_of(item).seed)


def unseed(config: pytest.Config) -> None:
    """Let the tests behind an amp test draw as if it had not been there."""
    if _SEEDING in config.stash:
        del config.stash[_SEEDING]
    if _RANDOM in config.stash:
        config.stash[_RANDOM]()
        del config.stash[_RANDOM]
