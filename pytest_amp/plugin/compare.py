"""``--amp-compare``: between what pytest was asked for and what is stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_amp.judge import comparison
from pytest_amp.results.report import AmpReport
from pytest_amp.rules import registry
from pytest_amp.settings.table import Settings
from pytest_amp.storage import store
from pytest_amp.storage.baseline import NEWEST, Baselines, NoBaseline, paths_of

_BASELINES = pytest.StashKey[Baselines]()


def is_wanted(settings: Settings) -> bool:
    """Whether results are to be held against stored ones, by whichever option says so."""
    return bool(
        settings.compare
        or settings.compare_fail
        or settings.compare_branch
        or settings.compare_exact
    )


def compared(config: pytest.Config, report: AmpReport, settings: Settings) -> AmpReport:
    """The report with gates against its baseline, or with the reason why there is none."""
    try:
        baselines = _of_session(config, settings)
        stored, origin = baselines.of(report)
    except (NoBaseline, ValueError) as error:
        return comparison.without_baseline(report, str(error), settings.compare_fail)
    found = registry.beside_baseline(report, stored)
    return comparison.compared(report, stored, origin, settings.compare_fail, found)


def finished(config: pytest.Config) -> list[str]:
    """Let the storage go. What of its runs could not be read, a sentence each."""
    found = config.stash.get(_BASELINES, None)
    if found is None:
        return []
    found.close()
    return found.warnings


def storage_of(config: pytest.Config) -> Path:
    """pytest-benchmark's storage. ValueError where that is no folder."""
    given = config.getoption("benchmark_storage", None) or store.DEFAULT
    return config.invocation_params.dir / store.folder(given)


def refuse_overwriting(config: pytest.Config, settings: Settings, report: Path) -> None:
    """Raise UsageError where this run's ``--amp-json`` would take a baseline's place."""
    reference = settings.compare or NEWEST
    if reference != NEWEST and _is_meant(config, reference, report):
        raise pytest.UsageError(
            f"--amp-json={report} would write over what --amp-compare={reference} compares with, "
            "and a regression be forgotten: write it elsewhere"
        )


def _is_meant(config: pytest.Config, reference: str, report: Path) -> bool:
    """Whether the report, once it is written, is among what the reference means."""
    ours = config.invocation_params.dir / report
    is_new = not ours.exists()
    if is_new:
        ours.touch()
    try:
        meant = paths_of(_storage_or_default(config), reference, config.invocation_params.dir)
        return ours.resolve() in {path.resolve() for path in meant}
    finally:
        if is_new:
            ours.unlink()


def _storage_or_default(config: pytest.Config) -> Path:
    """For a reference that names files, and may do so without a storage that is a folder."""
    try:
        return storage_of(config)
    except ValueError:
        return config.invocation_params.dir / store.DEFAULT


def _of_session(config: pytest.Config, settings: Settings) -> Baselines:
    if _BASELINES not in config.stash:
        reference, gated = settings.compare or NEWEST, settings.compare_fail
        config.stash[_BASELINES] = Baselines(
            storage_of(config) if reference == NEWEST else _storage_or_default(config),
            reference,
            settings.compare_branch,
            settings.compare_exact,
            config.invocation_params.dir,
            timed=not gated or "speedup" in gated,
        )
    return config.stash[_BASELINES]
