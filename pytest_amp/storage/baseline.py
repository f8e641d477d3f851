"""Choose the stored result that a new one is compared with."""

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
from pytest_amp.results.values import Baseline, against
from pytest_amp.storage import store
from pytest_amp.storage.index import Index
from pytest_amp.storage.key import PARTS, key, seconds, versions
from pytest_amp.storage.store import Broken, SavedRun

NEWEST = "newest"
_DAY_S = 86_400
_TRIED = 200  # candidates that are read before giving up, so that no storage is read as a whole


class NoBaseline(Exception):
    """There is no baseline. The text says why."""


@dataclass
class Baselines:
    """The baselines of one session.

    Attributes:
        storage: the folder of pytest-benchmark's storage.
        reference: `NEWEST`, a run's number, a file, a folder or a glob.
        branch: the branch that a baseline has to be from; None for any.
        exact: whether a baseline must have the same versions and flags.
        beside: the folder that a path in `reference` is relative to.
        timed: whether a baseline must have a speedup if the new result has one.
        any_verdict: whether results that did not pass will do. Nothing can be gated on these; they
            are for looking at the change.
        warnings: what could not be read on the way, one sentence each.
        used: the files that baselines were read from.
    """

    storage: Path
    reference: str = NEWEST
    branch: str | None = None
    exact: bool = False
    beside: Path = field(default_factory=Path.cwd)
    timed: bool = True
    any_verdict: bool = False
    warnings: list[str] = field(default_factory=list)
    used: set[Path] = field(default_factory=set)
    _index: Index | None = field(default=None, init=False)
    # Most tests of a session have their baseline in the same run.
    _read: Callable[[Path], SavedRun] = field(
        default_factory=lambda: lru_cache(8)(store.read), init=False
    )

    def of(self, report: AmpReport, but: SavedRun | None = None) -> tuple[AmpReport, Baseline]:
        """Return the newest passing result with the report's key, and where it comes from.

        Args:
            report: the new result.
            but: a run to pass over, such as the report's own.

        Raises:
            NoBaseline: there is no such result.
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
                self.used.add(found.path)
                return result, origin(run, result)
        raise NoBaseline(self._why_none(index, report, but))

    def others(self, nodeids: Iterable[str]) -> dict[str, str]:
        """Return when each test was measured last that is not among `nodeids`, by its id."""
        try:
            index = self._opened()
        except NoBaseline:
            return {}
        known = set(nodeids)
        there: dict[str, str] = {}
        for found in index.newest():
            nodeid = json.loads(found.key)[0]
            if nodeid in known:
                continue
            try:
                test = self._read(found.path).tests[found.key]
            except (Broken, KeyError) as error:
                self._warn([str(error)])
                continue
            if test.get("arms"):
                there[nodeid] = max(str(test["started"]), there.get(nodeid, ""))
        return dict(sorted(there.items()))

    def _needs_speedup(self, report: AmpReport) -> bool:
        return self.timed and not self.any_verdict and report.speedup is not None

    def close(self) -> None:
        """Close the index."""
        if self._index is not None:
            self._index.close()
            self._index = None

    def _opened(self) -> Index:
        """Open the index when it is first needed, and keep it for the session."""
        if self._index is None:
            try:
                self._index = index_of(self.storage, self.reference, self.beside)
            except NotADirectoryError:
                raise NoBaseline(
                    f"{store.printable(self.storage)} is a file, not a storage"
                ) from None
            except OSError as error:
                why = f"can't be read ({error.strerror or error})"
                raise NoBaseline(f"{store.printable(self.storage)} {why}") from None
            self._warn(self._index.warnings)
        return self._index

    def _why_none(self, index: Index, report: AmpReport, but: SavedRun | None) -> str:
        """Say what was looked for, and why the test's newest result is not it."""
        environment = report.environment
        place = f" on {environment.device} in {environment.dtype}" if environment else ""
        branch = f" of branch {self.branch}" if self.branch else ""
        exact = " with these versions and flags" if self.exact else ""
        where = self.storage if self.reference == NEWEST else self.reference
        passing = "" if self.any_verdict else " passing"
        wanted = f"there is no{passing} result of this test{place}{branch}{exact} in "
        wanted += store.printable(where)
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

    def _obstacle(self, result: AmpReport, run: SavedRun, report: AmpReport) -> str | None:
        stored, ours = (json.loads(key(each.to_dict())) for each in (result, report))
        other = [
            f"{name} {theirs}, not {here}"
            for name, theirs, here in zip(PARTS, stored, ours, strict=False)
            if theirs != here
        ]
        if other:
            return f"has {' and '.join(other)}"
        if stored != ours:
            return f"is of {_compared(result)}, not of {_compared(report)}"
        if self.branch is not None and run.branch != self.branch:
            return f"is of {f'branch {run.branch}' if run.branch else 'no branch'}"
        if self.exact and (found := list(differences(result.environment, report.environment))):
            return f"is from a different environment ({', '.join(found)})"
        return self._unfit(result, report)

    def _unfit(self, result: AmpReport, report: AmpReport) -> str | None:
        """Return why a result with the right key is not a baseline; None if it is one."""
        if self.any_verdict:
            return None
        if result.verdict != "pass":
            return f"did not pass ({result.verdict})"
        if result.unanswered:
            missing = " and ".join(gate.name for gate in result.unanswered)
            return f"failed under --amp-strict, without {missing}: save a first one without it"
        if self._needs_speedup(report):
            if result.speedup is None:
                return "was not timed"
            if result.speedup.low is None:
                return f"was timed too briefly ({units.plural(result.speedup.pairs, 'pair')})"
        if seconds(result.started) >= self._before(report):
            return f"is dated {result.started[:10]}, which is in the future"
        return None

    def _before(self, report: AmpReport) -> float:
        """Return the time, in seconds since 1970, before which a baseline must have begun.

        A result from the future was saved under a wrong clock. It must not stay the newest for
        ever.
        """
        return seconds(report.started) + _DAY_S if self.reference == NEWEST else math.inf

    def _warn(self, texts: Iterable[str]) -> None:
        self.warnings.extend(text for text in texts if text not in self.warnings)


def _is(run: SavedRun, other: SavedRun | None) -> bool:
    return other is not None and (run.path, run.id) == (other.path, other.id)


def index_of(storage: Path, reference: str, beside: Path) -> Index:
    """Open an index over the runs that a reference means.

    Raises:
        NoBaseline: the reference means no run.
        OSError: the storage can't be read.
    """
    if reference == NEWEST:
        return Index(storage)
    paths = paths_of(storage, reference, beside)
    if not paths:
        hint = "; before a path write --amp-compare=newest" if Path(reference).is_dir() else ""
        raise NoBaseline(f"there is no saved run {store.printable(reference)!r}{hint}")
    return Index(storage, paths)


def paths_of(storage: Path, reference: str, beside: Path) -> list[Path]:
    """Return the files that a reference means.

    It may be the number of a run. If it is not, it is tried as a path, and then as the name of a
    save.
    """
    numbered = _files_of(storage, reference) if reference.isdigit() else ()
    return list(numbered) or _by_path(reference, beside) or list(_files_of(storage, reference))


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


def _files_of(storage: Path, reference: str) -> Iterator[Path]:
    """Find runs by number, or by the name or glob that was given to ``--benchmark-save``."""
    with contextlib.suppress(NotADirectoryError):
        for file in store.files(storage, []):
            number, _, name = file.path.stem.partition("_")
            if reference.isdigit():
                meant = number.isdigit() and int(number) == int(reference)
            else:
                meant = fnmatchcase(name, reference) or fnmatchcase(file.path.name, reference)
            if meant:
                yield file.path


def origin(run: SavedRun, result: AmpReport) -> Baseline:
    """Describe where a result comes from."""
    commit, branch = (each and store.printable(each) for each in (run.commit, run.branch))
    return Baseline(
        run.name, store.printable(run.path), store.printable(result.started), commit, branch
    )


def _compared(report: AmpReport) -> str:
    return against(report.arms, report.environment.dtype if report.environment else "autocast")
