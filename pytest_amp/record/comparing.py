"""``--amp-compare``: between what pytest was asked for and what is stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_amp.judge import comparison
from pytest_amp.record import store
from pytest_amp.record.baseline import Baselines, NoBaseline
from pytest_amp.results import AmpReport
from pytest_amp.settings import Settings

_BASELINES = pytest.StashKey[Baselines]()


def is_wanted(settings: Settings) -> bool:
    """Whether results are to be held against stored ones; a gate on the change asks for it, too."""
    return settings.compare is not None or bool(settings.compare_fail)


def compared(config: pytest.Config, report: AmpReport, settings: Settings) -> AmpReport:
    """The report with gates against its baseline, or with the reason why there is none."""
    try:
        baselines = _of_session(config, settings)
        stored, origin = baselines.of(report)
    except (NoBaseline, ValueError) as error:
        return comparison.without_baseline(report, str(error), settings.compare_fail)
    return comparison.compared(report, stored, origin, settings.compare_fail)


def finished(config: pytest.Config) -> list[str]:
    """Let the storage go. What of its runs could not be read, a sentence each."""
    found = config.stash.get(_BASELINES, None)
    if found is None:
        return []
    found.close()
    return found.warnings


def storage_of(config: pytest.Config) -> Path:
    """pytest-benchmark's storage. ValueError where that is no folder."""
    return store.folder(config.getoption("benchmark_storage", None) or store.DEFAULT)


def _of_session(config: pytest.Config, settings: Settings) -> Baselines:
    if _BASELINES not in config.stash:
        config.stash[_BASELINES] = Baselines(
            storage_of(config),
            settings.compare or "newest",
            settings.compare_branch,
            settings.compare_exact,
        )
    return config.stash[_BASELINES]
