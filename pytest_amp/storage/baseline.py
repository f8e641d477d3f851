"""Which stored result a new one is held against."""

from __future__ import annotations

import contextlib
import glob
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

from pytest_amp import units
from pytest_amp.judge.comparison import differences
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import Baseline
from pytest_amp.storage import store
from pytest_amp.storage.index import Index
from pytest_amp.storage.key import PARTS, key, seconds, versions
from pytest_amp.storage.store import Broken, Run

NEWEST = "newest"
_DAY_S = 86_400
_TRIED = 200  # so many that turn out not to fit are read, and no storage whole


class NoBaseline(Exception):
    """There is none; the text says why."""


@dataclass
class Baselines:
    """Those of one session. `reference`: NEWEST, a run's number, a file, a folder or a glob.

    `branch`: of which branch alone. `exact`: with the same versions and flags alone. `warnings`:
    what could not be read on the way, a sentence each. `beside`: what a path is relative to.
    `timed`: with a speedup, where the new result has one. `any_verdict`: also results that did not
    pass, to look at the change and gate nothing.
    """

    storage: Path
    reference: str = NEWEST
    branch: str | None = None
    exact: bool = False
    beside: Path = field(default_factory=Path.cwd)
    timed: bool = True
    any_verdict: bool = False
    warnings: list[str] = field(default_factory=list)
    _index: Index | None = field(default=None, init=False)
    # The tests of a session mostly have one run as their baseline.
    _read: Callable[[Path], Run] = field(
        default_factory=lambda: lru_cache(8)(store.read), init=False
    )

    def of(self, report: AmpReport, but: Run | None = None) -> tuple[AmpReport, Baseline]:
        """The newest passing result with the report's key, and where it is from.

        `but`: a run that it may not be of, the report's own. Raises `NoBaseline`, with the reason.
        """
        index = self._opened()
        plain = report.to_dict()
        candidates = index.of_key(
            key(plain),
            passing=not self.any_verdict,
            timed=self._needs_speedup(report),
            before=self._before(report),
            branch=self.branch,
            versions=versions(plain) if self.exact else None,
            most=_TRIED,
        )
        for found in candidates:
            try:
                run = self._read(found.path)
                result = run.report(found.key)
            except (Broken, KeyError) as error:
                self._warn([str(error)])
                continue
            if not _is(run, but) and self._unfit(result, report) is None:
                return result, origin(run, result)
        raise NoBaseline(self._why_none(index, report, but))

    def others(self, nodeids: Iterable[str]) -> list[str]:
        """The tests that have results, without these; none where there is no baseline."""
        try:
            index = self._opened()
        except NoBaseline:
            return []
        there = {json.loads(found.key)[0] for found in index.newest()}
        return sorted(there - set(nodeids))

    def _needs_speedup(self, report: AmpReport) -> bool:
        return self.timed and not self.any_verdict and report.speedup is not None

    def close(self) -> None:
        """Let the index go."""
        if self._index is not None:
            self._index.close()
            self._index = None

    def _opened(self) -> Index:
        """Of the runs as they are when the session first asks."""
        if self._index is None:
            try:
                self._index = index_of(self.storage, self.reference, self.beside)
            except NotADirectoryError:
                raise NoBaseline(f"{store.shown(self.storage)} is a file, not a storage") from None
            except OSError as error:
                why = f"can't be read ({error.strerror or error})"
                raise NoBaseline(f"{store.shown(self.storage)} {why}") from None
            self._warn(self._index.warnings)
        return self._index

    def _why_none(self, index: Index, report: AmpReport, but: Run | None) -> str:
        """What there is not, and what stands in the way of the newest result that there is."""
        environment = report.environment
        place = f" on {environment.device} in {environment.dtype}" if environment else ""
        branch = f" of branch {self.branch}" if self.branch else ""
        exact = " with these versions and flags" if self.exact else ""
        where = self.storage if self.reference == NEWEST else self.reference
        passing = "" if self.any_verdict else " passing"
        wanted = f"there is no{passing} result of this test{place}{branch}{exact} in "
        wanted += store.shown(where)
        for found in index.of_test(report.nodeid)[:_TRIED]:
            try:
                run = self._read(found.path)
                result = run.report(found.key)
            except (Broken, KeyError):
                continue
            if _is(run, but):
                why: str | None = "is the same run"
            else:
                why = self._obstacle(result, run, report)
            if why:
                return f"{wanted}; its newest, in run {run.name}, {why}"
        return wanted

    def _obstacle(self, result: AmpReport, run: Run, report: AmpReport) -> str | None:
        stored, ours = (json.loads(key(each.to_dict())) for each in (result, report))
        other = [
            f"{name} {theirs}, not {here}"
            for name, theirs, here in zip(PARTS, stored, ours, strict=True)
            if theirs != here
        ]
        if other:
            return f"has {' and '.join(other)}"
        if self.branch is not None and run.branch != self.branch:
            return f"is of {f'branch {run.branch}' if run.branch else 'no branch'}"
        if self.exact and (found := list(differences(result.environment, report.environment))):
            return f"is of another environment ({', '.join(found)})"
        return self._unfit(result, report)

    def _unfit(self, result: AmpReport, report: AmpReport) -> str | None:
        """Why this result is no baseline of that report, though it is of the same key."""
        if self.any_verdict:
            return None
        if result.verdict != "pass":
            return f"is no passing one ({result.verdict})"
        if result.unanswered:
            missing = " and ".join(gate.name for gate in result.unanswered)
            return f"failed under --amp-strict, without {missing}: save a first one without it"
        if self._needs_speedup(report):
            if result.speedup is None:
                return "was not timed"
            if result.speedup.low is None:
                return f"was timed too briefly ({units.plural(result.speedup.pairs, 'pair')})"
        if seconds(result.started) >= self._before(report):
            return f"says that it is of {result.started[:10]}, which is yet to come"
        return None

    def _before(self, report: AmpReport) -> float:
        """Until when a baseline may be of: a clock that was wrong must not be right for ever."""
        return seconds(report.started) + _DAY_S if self.reference == NEWEST else math.inf

    def _warn(self, texts: Iterable[str]) -> None:
        self.warnings.extend(text for text in texts if text not in self.warnings)


def _is(run: Run, other: Run | None) -> bool:
    return other is not None and (run.path, run.id) == (other.path, other.id)


def index_of(storage: Path, reference: str, beside: Path) -> Index:
    """Over the runs that are meant. `NoBaseline` where there is none; OSError as a storage has."""
    if reference == NEWEST:
        return Index(storage)
    paths = paths_of(storage, reference, beside)
    if not paths:
        hint = "; before a path write --amp-compare=newest" if Path(reference).is_dir() else ""
        raise NoBaseline(f"there is no saved run {store.shown(reference)!r}{hint}")
    return Index(storage, paths)


def paths_of(storage: Path, reference: str, beside: Path) -> list[Path]:
    """The files that a reference means: a run by its number, else paths, else saves by name."""
    numbered = _named(storage, reference) if reference.isdigit() else ()
    return list(numbered) or _by_path(reference, beside) or list(_named(storage, reference))


def _by_path(reference: str, beside: Path) -> list[Path]:
    given = os.fspath(Path(reference).expanduser())
    found = [given] if (beside / given).exists() else glob.glob(  # noqa: PTH207 - it has no root
        given, root_dir=beside, recursive=True
    )  # fmt: skip
    each = (beside / name for name in sorted(found))
    return [
        path
        for here in each
        for path in (sorted(here.rglob("*.json")) if here.is_dir() else [here])
    ]


def _named(storage: Path, reference: str) -> Iterator[Path]:
    """By the number, or the name that ``--benchmark-save`` gave, whole or as a glob."""
    with contextlib.suppress(NotADirectoryError):
        for file in store.files(storage, []):
            number, _, name = file.path.stem.partition("_")
            if reference.isdigit():
                meant = number.isdigit() and int(number) == int(reference)
            else:
                meant = fnmatchcase(name, reference) or fnmatchcase(file.path.name, reference)
            if meant:
                yield file.path


def origin(run: Run, result: AmpReport) -> Baseline:
    """Where a result is from."""
    commit, branch = (each and store.shown(each) for each in (run.commit, run.branch))
    return Baseline(run.name, store.shown(run.path), store.shown(result.started), commit, branch)
