"""Carry out ``--amp-compare``: find a result's baseline in the storage, and compare the two."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from pytest_amp.judge import comparison
from pytest_amp.judge import missing as judge
from pytest_amp.plugin import collection
from pytest_amp.plugin.options import COMPARING
from pytest_amp.results.acknowledged import Acknowledged
from pytest_amp.results.report import AmpReport
from pytest_amp.rules import registry
from pytest_amp.settings.resolved import Settings
from pytest_amp.storage import acknowledgements, store
from pytest_amp.storage.acknowledgements import may_be
from pytest_amp.storage.baseline import NEWEST, Baselines, NoBaseline, paths_of

_BASELINES = pytest.StashKey[Baselines]()
_ACCEPTED = pytest.StashKey[tuple[Acknowledged, ...]]()


def is_wanted(settings: Settings) -> bool:
    """Return whether any of the options asks for a comparison with stored results."""
    return any(getattr(settings, name) for name in COMPARING)


def compared(
    config: pytest.Config, report: AmpReport, settings: Settings, nodeid: str
) -> AmpReport:
    """Return the report with gates that compare it, or that say why there is no baseline.

    Args:
        config: pytest's configuration.
        report: the test's report.
        settings: the test's settings.
        nodeid: what the test is called where it is not repeated. So its repetitions have a
            baseline, unless the stored run repeated it as well.
    """
    asked = replace(report, nodeid=nodeid)
    try:
        baselines = _of_session(config, settings)
        try:
            stored, origin = baselines.of(report)
        except NoBaseline:
            if nodeid == report.nodeid:
                raise
            stored, origin = baselines.of(asked)
    except (NoBaseline, ValueError) as error:
        new = may_be("new", load_accepted(config), nodeid, report.started)
        return comparison.without_baseline(report, str(error), settings.compare_fail, new)
    found = registry.beside_baseline(report, stored)
    known = acknowledgements.applying(load_accepted(config), asked, origin.started)
    return comparison.compared(report, stored, origin, settings.compare_fail, found, known)


def load_accepted(config: pytest.Config) -> tuple[Acknowledged, ...]:
    """Return what was accepted, from the file in pytest's root directory.

    Raises:
        pytest.UsageError: the file says something else.
    """
    if _ACCEPTED not in config.stash:
        try:
            config.stash[_ACCEPTED] = acknowledgements.load(config.rootpath / acknowledgements.FILE)
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None
    return config.stash[_ACCEPTED]


class Closed(NamedTuple):
    """What is left of the baselines of a run, as plain text that xdist can send.

    Attributes:
        unread: a sentence for each run in the storage that could not be read.
        used: the files that baselines were read from.
    """

    unread: list[str]
    used: list[str]


def finished(config: pytest.Config) -> Closed:
    """Close the storage, and return what is left."""
    found = config.stash.get(_BASELINES, None)
    if found is None:
        return Closed([], [])
    found.close()
    return Closed(found.warnings, sorted(map(str, found.used)))


def missing(
    config: pytest.Config,
    reports: Sequence[AmpReport],
    once: Mapping[str, str],
    used: Collection[str],
) -> list[str]:
    """Return a sentence for each test that the baselines measured and this run did not.

    A test that was deselected, renamed or skipped has no gate any more, and would not be missed.
    Nothing is missing from a run that was asked for tests by their ids.

    Args:
        config: pytest's configuration.
        reports: the run's reports.
        once: by each report's id, what the test is called where it is not repeated.
        used: the files that its baselines were read from.
    """
    by_id = any("::" in argument for argument in config.args)
    if not used or (by_id and config.args_source is pytest.Config.ArgsSource.ARGS):
        return []
    accepted = load_accepted(config)
    measured: dict[str, tuple[str, str]] = {}  # when, and in which run
    for file in used:
        with contextlib.suppress(store.Broken):  # it could be read a moment ago
            run = store.read(Path(file))
            for test in run.tests.values():
                nodeid, when = str(test["nodeid"]), str(test["started"])
                if not test.get("arms") or may_be("missing", accepted, nodeid, when):
                    continue
                measured[nodeid] = max((when, f"run {run.name}"), measured.get(nodeid, ("", "")))
    # A repeated test stands for itself, and any of its repetitions for the test.
    named = [*reports, *(replace(each, nodeid=once[each.nodeid]) for each in reports)]
    there = {each.nodeid for each in named}
    return list(
        judge.missing(
            named,
            {
                nodeid: run
                for nodeid, (_, run) in measured.items()
                if collection.without_repetition(nodeid) not in there or nodeid in there
            },
        )
    )


def storage_of(config: pytest.Config) -> Path:
    """Return the folder of pytest-benchmark's storage.

    Raises:
        ValueError: the storage is not a folder.
    """
    given = config.getoption("benchmark_storage", None) or store.DEFAULT
    return config.invocation_params.dir / store.folder(given)


def refuse_overwriting(config: pytest.Config, settings: Settings, report: Path) -> None:
    """Refuse a path of ``--amp-json`` that would overwrite a baseline.

    Raises:
        pytest.UsageError: the path is among the files that ``--amp-compare`` names.
    """
    reference = settings.compare or NEWEST
    if reference != NEWEST and _is_meant(config, reference, report):
        raise pytest.UsageError(
            f"--amp-json={report} would overwrite what --amp-compare={reference} compares with, "
            "so that the next run would not see a regression: choose another path"
        )


def _is_meant(config: pytest.Config, reference: str, report: Path) -> bool:
    """Return whether the report, once it is written, is one of the files that are meant."""
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
    """Return the storage, or the default one: a reference to files does not need a storage."""
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
