"""An index over a storage, so that reading it does not cost more with every run that it holds.

A SQLite file in the storage's folder, safe to delete: what it holds is read from the runs
themselves, and a run is read again when its file's size or time changes. Where it can't be
written it is made anew in memory.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import sqlite3
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from pytest_amp.record import store
from pytest_amp.record.columns import NUMBERS, TEXTS, Column, key
from pytest_amp.record.store import Broken, Run

NAME: Final = ".amp-index.sqlite"
_FORMAT: Final = 3
_PATIENCE_S: Final = 30.0
_AT_ONCE: Final = 200
# A changed table of columns makes another index.
_VERSION: Final = (  # SQLite keeps 31 bits of it
    zlib.crc32(repr([_FORMAT, [each.name for each in (*TEXTS, *NUMBERS)]]).encode()) & 0x7FFFFFFF
)
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS texts (id INTEGER PRIMARY KEY, text TEXT UNIQUE NOT NULL);
CREATE TABLE IF NOT EXISTS files (
    name TEXT PRIMARY KEY, size INTEGER NOT NULL, modified INTEGER NOT NULL,
    broken TEXT, texts BLOB NOT NULL, numbers BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS passing (
    key TEXT NOT NULL, branch TEXT, started REAL NOT NULL, file TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS newest ON passing (key, started DESC);
CREATE INDEX IF NOT EXISTS of_file ON passing (file);
"""


class Found(NamedTuple):
    """Where a result is: the run's file, and when the test began (seconds since 1970)."""

    path: Path
    started: float


class Table(NamedTuple):
    """All results, row by row: `texts` as ids into `names`, `numbers` as doubles, NaN for none.

    The first of the numbers is the start, in seconds since 1970.
    """

    names: Mapping[int, str]
    texts: bytes
    numbers: bytes


class Index:
    """Over the storage at `root`. `warnings`: what of it could not be read, a sentence each.

    Made up to date when it is opened; close it, or use it in a with statement.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._ids = {"": 0}
        self._database = _opened(root)
        try:
            self._update()
        except sqlite3.DatabaseError:  # damaged, or on a disk that is full or read-only
            self._database.close()
            self._database, self._ids = _in_memory(), {"": 0}
            self._update()
        self.warnings = tuple(
            text
            for (texts,) in self._all(
                "SELECT broken FROM files WHERE broken NOT NULL ORDER BY name"
            )
            for text in str(texts).split("\n")
        )

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go."""
        self._database.close()

    def passing(self, key: str, branch: str | None = None) -> Iterator[Found]:
        """Passing results of that key, the newest first; of one branch, where it is given."""
        of_branch = "" if branch is None else " AND branch = ?"
        rows = self._database.execute(
            f"SELECT file, started FROM passing WHERE key = ?{of_branch} "
            "ORDER BY started DESC, file DESC",
            (key,) if branch is None else (key, _encodable(branch)),
        )
        for name, started in rows:
            yield Found(self._root / name, started)

    def table(self) -> Table:
        """Everything, in no order."""
        rows = self._all("SELECT texts, numbers FROM files")
        return Table(
            names=dict(self._all("SELECT id, text FROM texts")),
            texts=b"".join(texts for texts, _ in rows),
            numbers=b"".join(numbers for _, numbers in rows),
        )

    def results(self) -> int:
        """How many there are, in all runs."""
        ((length,),) = self._all("SELECT COALESCE(SUM(LENGTH(numbers)), 0) FROM files")
        return int(length) // (8 * (1 + len(NUMBERS)))

    def _all(self, query: str) -> list[Any]:
        return self._database.execute(query).fetchall()

    def _update(self) -> None:
        there = dict(self._there())
        known = {
            name: (size, modified)
            for name, size, modified in self._all("SELECT name, size, modified FROM files")
        }
        gone = [name for name in known if name not in there]
        changed = [name for name, stamp in there.items() if known.get(name) != stamp]
        for names in _batches(gone):
            with self._writing():
                self._forget(names)
        for names in _batches(changed):
            read = [(name, *self._read(name)) for name in names]
            with self._writing():
                self._forget(names)
                for name, run, broken in read:
                    self._insert(name, there[name], run, broken)

    def _there(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for entry in store.files(self._root):
            with contextlib.suppress(FileNotFoundError):  # removed since its folder was read
                found = entry.stat()
                name = Path(entry.path).relative_to(self._root).as_posix()
                yield name, (found.st_size, found.st_mtime_ns)

    def _read(self, name: str) -> tuple[Run | None, list[str]]:
        try:
            run = store.read(self._root / name)
        except Broken as error:
            return None, [str(error)]
        return run, list(run.damaged)

    def _forget(self, names: Iterable[str]) -> None:
        given = [(name,) for name in names]
        self._database.executemany("DELETE FROM files WHERE name = ?", given)
        self._database.executemany("DELETE FROM passing WHERE file = ?", given)

    def _insert(
        self, name: str, stamp: tuple[int, int], run: Run | None, broken: list[str]
    ) -> None:
        texts, numbers = array("i"), array("d")
        for nodeid, report in run.tests.items() if run else ():
            try:
                row, started = _row(run, report), _seconds(report["started"])  # type: ignore[arg-type]
                passed, same = report["verdict"] == "pass", key(report)
            except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
                why = f"the report of {store.shown(nodeid)} can't be read ({error})"
                broken.append(str(Broken(self._root / name, why)))
                continue
            texts.extend(map(self._id, row[0]))
            numbers.extend((started, *row[1]))
            if passed:
                branch = _encodable(run.branch) if run and run.branch else None
                self._database.execute(
                    "INSERT INTO passing VALUES (?, ?, ?, ?)", (same, branch, started, name)
                )
        self._database.execute(
            "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)",
            (name, *stamp, "\n".join(broken) or None, texts.tobytes(), numbers.tobytes()),
        )

    def _id(self, text: str) -> int:
        """0 stands for nothing. Texts stay when runs go, so what is known of them stays true."""
        known = self._ids.get(text)
        if known is None:
            select = self._database.execute("SELECT id FROM texts WHERE text = ?", (text,))
            found = select.fetchone()
            if found is None:
                insert = self._database.execute("INSERT INTO texts (text) VALUES (?)", (text,))
                found = (insert.lastrowid,)
            known = self._ids[text] = int(found[0])
        return known

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            if self._database.execute("PRAGMA user_version").fetchone() != (_VERSION,):
                raise sqlite3.DatabaseError("another version of pytest-amp has taken the index")
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")


def _opened(root: Path) -> sqlite3.Connection:
    """The index's file, empty where it was made for other columns; in memory where it can't be."""
    if root.is_dir():
        for _ in range(2):
            database = None
            try:
                database = _connected(root / NAME)
                if database.execute("PRAGMA user_version").fetchone() != (_VERSION,):
                    _make(database)
                return database
            except sqlite3.DatabaseError as error:
                if database is not None:
                    database.close()
                if isinstance(error, sqlite3.OperationalError):  # locked, read-only, no room
                    break
                with contextlib.suppress(OSError):  # no database at all
                    (root / NAME).unlink()
    return _in_memory()


def _in_memory() -> sqlite3.Connection:
    database = _connected(":memory:")
    _make(database)
    return database


def _connected(name: Path | str) -> sqlite3.Connection:
    """Plugins may run a session's tests in several threads."""
    return sqlite3.connect(name, timeout=_PATIENCE_S, isolation_level=None, check_same_thread=False)


def _make(database: sqlite3.Connection) -> None:
    database.execute("BEGIN IMMEDIATE")
    for table in ("texts", "files", "passing"):
        database.execute(f"DROP TABLE IF EXISTS {table}")
    for statement in filter(str.strip, _TABLES.split(";")):
        database.execute(statement)
    database.execute(f"PRAGMA user_version = {_VERSION}")
    database.execute("COMMIT")


def _batches(names: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(names)
    while batch := list(itertools.islice(rest, _AT_ONCE)):
        yield batch


def _row(run: Run, report: Mapping[str, Any]) -> tuple[list[str], list[float]]:
    return (
        [_text(column, column.of(run, report)) for column in TEXTS],
        [_number(column, column.of(run, report)) for column in NUMBERS],
    )


def _text(column: Column, value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(f"{column.name} is not a text")
    return _encodable(value)


def _encodable(text: str) -> str:
    """SQLite keeps UTF-8, and half a surrogate (a byte of a file's name that is none) has none."""
    return text.encode(errors="backslashreplace").decode()


def _number(column: Column, value: object) -> float:
    if value is None:
        return math.nan
    if not isinstance(value, (int, float)):
        raise TypeError(f"{column.name} is not a number")
    return float(value)


def _seconds(started: str) -> float:
    time = datetime.fromisoformat(started)
    if not 1970 < time.year < 2262:  # what pandas has nanoseconds for
        raise ValueError(f"it is of the year {time.year}")
    return time.timestamp()
