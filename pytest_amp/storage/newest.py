"""Read the newest result of each test, device, dtype and settings."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from pytest_amp.results.report import AmpReport
from pytest_amp.storage import store
from pytest_amp.storage.index import Found, Index
from pytest_amp.storage.store import Broken, SavedRun


class Result(NamedTuple):
    """A stored result, the run that it belongs to, and its key."""

    run: SavedRun
    report: AmpReport
    key: str


def newest(index: Index) -> Iterator[Result]:
    """Yield the newest readable result of each key, ordered by node id.

    If the newest one can't be read, the index gets a warning and an older one takes its place.
    """
    read = lru_cache(8)(store.read)
    for first in index.newest():
        for found in _older(index, first):
            try:
                run = read(found.path)
                yield Result(run, run.report(found.key), found.key)
                break
            except (Broken, KeyError) as error:
                index.warnings = (*index.warnings, str(error))


def _older(index: Index, first: Found) -> Iterator[Found]:
    yield first
    yield from index.of_key(first.key, passing=False)[1:]
