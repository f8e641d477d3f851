"""Which stored result a new one is held against."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from pytest_amp.judge.comparison import differences
from pytest_amp.record import store
from pytest_amp.record.columns import key
from pytest_amp.record.index import Index
from pytest_amp.record.store import Broken, Run
from pytest_amp.results import AmpReport, Baseline

NEWEST = "newest"


class NoBaseline(Exception):
    """There is none; the text says why."""


@dataclass
class Baselines:
    """Those of one session. `reference`: NEWEST, a run's number, a file, a folder or a glob.

    `branch`: of which branch alone. `exact`: with the same versions and flags alone. `warnings`:
    what could not be read on the way, a sentence each.
    """

    storage: Path
    reference: str = NEWEST
    branch: str | None = None
    exact: bool = False
    warnings: list[str] = field(default_factory=list)
    _index: Index | None = field(default=None, init=False)
    _runs: list[Run] | None = field(default=None, init=False)
    # The tests of a session mostly have one run as their baseline.
    _read: Callable[[Path], Run] = field(
        default_factory=lambda: lru_cache(8)(store.read), init=False
    )

    def of(self, report: AmpReport) -> tuple[AmpReport, Baseline]:
        """The newest passing result with the report's key, and where it is from.

        Raises `NoBaseline`, with the reason.
        """
        try:
            return self._newest(report) if self.reference == NEWEST else self._referred(report)
        except NotADirectoryError:
            raise NoBaseline(f"{store.shown(self.storage)} is a file, not a storage") from None
        except OSError as error:
            raise NoBaseline(
                f"{store.shown(self.storage)} can't be read ({error.strerror or error})"
            ) from None

    def close(self) -> None:
        """Let the index go."""
        if self._index is not None:
            self._index.close()
            self._index = None

    def _newest(self, report: AmpReport) -> tuple[AmpReport, Baseline]:
        if self._index is None:  # as the storage is when the session first asks
            self._index = Index(self.storage)
            self._warn(self._index.warnings)
        for found in self._index.passing(key(report.to_dict()), self.branch):
            try:
                run = self._read(found.path)
                result = run.report(report.nodeid)
            except (Broken, KeyError) as error:
                self._warn([str(error)])
                continue
            if not (self.exact and any(differences(result.environment, report.environment))):
                return result, origin(run, result)
        raise NoBaseline(f"{self._wanted(report)} in {store.shown(self.storage)}")

    def _referred(self, report: AmpReport) -> tuple[AmpReport, Baseline]:
        """Of the runs that are meant; says what stands in the way where none fits."""
        why = f"{self._wanted(report)} in {store.shown(self.reference)}"
        fitting: list[tuple[AmpReport, Run]] = []
        for run in self._meant():
            if report.nodeid not in run.tests:
                continue
            try:
                result = run.report(report.nodeid)
            except Broken as error:
                self._warn([str(error)])
                continue
            reason = self._unfit(result, run, report)
            if reason is None:
                fitting.append((result, run))
            else:
                why = f"its result in run {run.name} {reason}"
        if not fitting:
            raise NoBaseline(why)
        result, run = max(fitting, key=lambda each: each[0].started)
        return result, origin(run, result)

    def _unfit(self, result: AmpReport, run: Run, report: AmpReport) -> str | None:
        if result.verdict != "pass":
            return f"is no passing one ({result.verdict})"
        if key(result.to_dict()) != key(report.to_dict()):
            return "is of another device, dtype or number of steps"
        if self.branch is not None and run.branch != self.branch:
            return f"is of {f'branch {run.branch}' if run.branch else 'no branch'}"
        if self.exact and (found := list(differences(result.environment, report.environment))):
            return f"is of another environment ({', '.join(found)})"
        return None

    def _meant(self) -> Iterable[Run]:
        if self._runs is None:
            problems: list[str] = []
            self._runs = meant(self.storage, self.reference, problems)
            self._warn(problems)
        return self._runs

    def _wanted(self, report: AmpReport) -> str:
        environment = report.environment
        place = f" on {environment.device} in {environment.dtype}" if environment else ""
        branch = f" of branch {self.branch}" if self.branch else ""
        versions = " with these versions and flags" if self.exact else ""
        return f"there is no passing result of this test{place}{branch}{versions}"

    def _warn(self, texts: Iterable[str]) -> None:
        self.warnings.extend(text for text in texts if text not in self.warnings)


def meant(storage: Path, reference: str, problems: list[str]) -> list[Run]:
    """The runs that a number, a file, a folder or a glob means. `NoBaseline` where none is there.

    What can't be read of them joins `problems`.
    """
    paths = list(_paths(storage, reference))
    if not paths:
        hint = "; before a path write --amp-compare=newest" if Path(reference).is_dir() else ""
        raise NoBaseline(f"there is no saved run {store.shown(reference)!r}{hint}")
    runs = []
    for path in paths:
        try:
            runs.append(store.read(path))
        except Broken as error:
            problems.append(str(error))
    return runs


def _paths(storage: Path, reference: str) -> Iterator[Path]:
    path = Path(reference).expanduser()
    if reference.isdigit() and not path.exists():
        for entry in store.files(storage):
            number = entry.name.partition("_")[0]
            if number.isdigit() and int(number) == int(reference):
                yield Path(entry.path)
    elif path.is_dir():
        yield from sorted(path.rglob("*.json"))
    elif path.exists():
        yield path
    else:
        for each in sorted(map(Path, glob.glob(os.fspath(path), recursive=True))):  # noqa: PTH207
            yield from sorted(each.rglob("*.json")) if each.is_dir() else [each]


def origin(run: Run, result: AmpReport) -> Baseline:
    """Where a result is from."""
    commit, branch = (each and store.shown(each) for each in (run.commit, run.branch))
    return Baseline(run.name, store.shown(run.path), store.shown(result.started), commit, branch)
