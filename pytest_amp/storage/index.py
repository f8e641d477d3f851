"""Index saved runs, so that reading the history does not get slower with every run.

The index of a storage is an SQLite file in its folder, which is safe to delete: it holds only what
was read from the runs, and a run is read again if its file's size or time changes. If the file
can't be written, and for runs that are named one by one, the index is kept in memory.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import sqlite3
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from pytest_amp.storage import key as keys
from pytest_amp.storage import store
from pytest_amp.storage.columns import NUMBERS, TEXTS, Column
from pytest_amp.storage.store import Broken, SavedRun

T = TypeVar("T")
NAME: Final = ".amp-index.sqlite"
_FORMAT: Final = 5
_PATIENCE_S: Final = 30.0
_AT_ONCE: Final = 200
_LARGEST: Final = 2**63 - 1
# A change to the table of columns changes the version, so that the index is made anew.
_VERSION: Final = (  # SQLite stores 31 bits
    zlib.crc32(repr([_FORMAT, [each.name for each in (*TEXTS, *NUMBERS)]]).encode()) & 0x7FFFFFFF
)
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS texts (id INTEGER PRIMARY KEY, text TEXT UNIQUE NOT NULL);
CREATE TABLE IF NOT EXISTS files (
    name TEXT PRIMARY KEY, size INTEGER NOT NULL, modified INTEGER NOT NULL,
    broken TEXT, texts BLOB NOT NULL, numbers BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS results (
    key TEXT NOT NULL, nodeid TEXT NOT NULL, verdict TEXT NOT NULL, timed INTEGER NOT NULL,
    branch TEXT, versions TEXT NOT NULL, started REAL NOT NULL, number INTEGER, file TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS newest ON results (key, started DESC);
CREATE INDEX IF NOT EXISTS of_test ON results (nodeid, started DESC);
CREATE INDEX IF NOT EXISTS of_file ON results (file);
"""
_FOUND: Final = "SELECT file, key FROM results"
_NEWEST_FIRST: Final = "ORDER BY started DESC, number DESC, file DESC"


class Found(NamedTuple):
    """Where a result is: the run's file, and the result's key in it."""

    path: Path
    key: str


class Table(NamedTuple):
    """All results, row by row.

    Attributes:
        names: the texts, by id.
        texts: ids as 32-bit integers, one for each of `TEXTS`; 0 means a missing text.
        numbers: doubles: the start in seconds since 1970, then one for each of `NUMBERS`; NaN means
            a missing number.
    """

    names: Mapping[int, str]
    texts: bytes
    numbers: bytes


class Index:
    """An index over the storage at `root`, or in memory over the files in `paths`.

    It is brought up to date when it is opened. Close it, or use it in a with statement. `warnings`
    says what could not be read, one sentence each.
    """

    def __init__(self, root: Path, paths: Sequence[Path] | None = None) -> None:
        self._root = root
        self._paths = paths
        self._ids = {"": 0}
        self._listing: list[str] = []
        self._database = _opened(root) if paths is None else _in_memory()
        self._retried(self._update)
        self.warnings: tuple[str, ...] = (
            *self._listing,
            *(
                text
                for (texts,) in self._all(
                    "SELECT broken FROM files WHERE broken NOT NULL ORDER BY name"
                )
                for text in str(texts).split("\n")
            ),
        )

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def of_key(
        self,
        key: str,
        *,
        passing: bool = True,
        timed: bool = False,
        before: float = math.inf,
        branch: str | None = None,
        versions: str | None = None,
        most: int = -1,
    ) -> list[Found]:
        """Find the results with a key, the newest first.

        Args:
            key: the key, as `storage.key` makes it.
            passing: find only results that passed.
            timed: find only results that have a speedup with an interval.
            before: find only results from before this time, in seconds since 1970.
            branch: find only results of this branch.
            versions: find only results with these versions and flags.
            most: the largest number of results; -1 for all.
        """
        query = "key = ? AND started < ?"
        given: list[object] = [key, before]
        if passing:
            query += " AND verdict = 'pass'"
        if timed:
            query += " AND timed"
        if branch is not None:
            query += " AND branch = ?"
            given.append(_encodable(branch))
        if versions is not None:
            query += " AND versions = ?"
            given.append(versions)
        return self._found(f"{_FOUND} WHERE {query} {_NEWEST_FIRST} LIMIT {most}", given)

    def of_test(self, nodeid: str) -> list[Found]:
        """Find all results of a test, whatever their key, the newest first."""
        return self._found(f"{_FOUND} WHERE nodeid = ? {_NEWEST_FIRST}", [_encodable(nodeid)])

    def newest(self) -> list[Found]:
        """Find the newest result of each key, ordered by node id."""
        ranked = (
            f"SELECT file, key, nodeid, ROW_NUMBER() OVER (PARTITION BY key {_NEWEST_FIRST}) "
            "AS place FROM results"
        )
        return self._found(
            f"SELECT file, key FROM ({ranked}) WHERE place = 1 ORDER BY nodeid, key", []
        )

    def table(self) -> Table:
        """Return all results, in no particular order."""
        rows = self._all("SELECT texts, numbers FROM files")
        return Table(
            names=dict(self._all("SELECT id, text FROM texts")),
            texts=b"".join(texts for texts, _ in rows),
            numbers=b"".join(numbers for _, numbers in rows),
        )

    def size(self) -> tuple[int, int]:
        """Return how many readable runs there are, and how many results."""
        ((runs, results),) = self._all(
            "SELECT (SELECT COUNT(*) FROM files WHERE broken IS NULL OR LENGTH(numbers) > 0), "
            "(SELECT COUNT(*) FROM results)"
        )
        return int(runs), int(results)

    def _found(self, query: str, given: Sequence[object]) -> list[Found]:
        return [Found(self._root / name, key) for name, key in self._all(query, given)]

    def _all(self, query: str, given: Sequence[Any] = ()) -> list[Any]:
        return self._retried(lambda: self._database.execute(query, given).fetchall())

    def _retried(self, work: Callable[[], T]) -> T:
        """Do some work on the database, and again on a new one if this one fails.

        A damaged file is replaced. If that does not help, the index moves into memory.
        """
        try:
            return work()
        except sqlite3.DatabaseError as error:
            if self._paths is None and _is_damage(error):
                with contextlib.suppress(OSError, sqlite3.DatabaseError):
                    (self._root / NAME).unlink()
                    self._begin(_opened(self._root))
                    return work()
            self._begin(_in_memory())
            return work()

    def _begin(self, database: sqlite3.Connection) -> None:
        self._database.close()
        self._database, self._ids = database, {"": 0}
        self._update()

    def _update(self) -> None:
        there = dict(self._there())
        known = {
            name: (size, modified)
            for name, size, modified in self._database.execute(
                "SELECT name, size, modified FROM files"
            )
        }
        gone = [name for name in known if name not in there]
        changed = [name for name, stamp in there.items() if known.get(name) != stamp]
        for names in _batches(gone):
            with self._writing():
                self._forget(names)
        for names in _batches(changed):
            with _without_collecting():
                read = [(name, *self._read(name)) for name in names]
            with self._writing():
                self._forget(names)
                for name, run, broken in read:
                    self._insert(name, there[name], run, broken)

    def _there(self) -> Iterator[tuple[str, tuple[int, int]]]:
        self._listing.clear()
        for name, stamp in self._listed():
            if _encodable(name) == name:
                yield name, stamp
            else:
                self._listing.append(str(Broken(self._root / name, "its name is not UTF-8")))

    def _listed(self) -> Iterator[tuple[str, tuple[int, int]]]:
        if self._paths is not None:
            yield from ((str(path.absolute()), (0, 0)) for path in self._paths)
            return
        for file in store.files(self._root, self._listing):
            yield file.name, (file.size, file.modified)

    def _read(self, name: str) -> tuple[SavedRun | None, list[str]]:
        try:
            run = store.read(self._root / name)
        except Broken as error:
            return None, [str(error)]
        return run, list(run.damaged)

    def _forget(self, names: Iterable[str]) -> None:
        given = [(name,) for name in names]
        self._database.executemany("DELETE FROM files WHERE name = ?", given)
        self._database.executemany("DELETE FROM results WHERE file = ?", given)

    def _insert(
        self, name: str, stamp: tuple[int, int], run: SavedRun | None, broken: list[str]
    ) -> None:
        texts, numbers = array("i"), array("d")
        for key, report in run.tests.items() if run else ():
            try:
                row, started = _row(run, report), keys.seconds(report["started"])  # type: ignore[arg-type]
                timed = (report.get("speedup") or {}).get("low") is not None
                about = (_encodable(str(report["verdict"])), timed)
                same = keys.versions(report)
            except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
                nodeid = store.printable(report["nodeid"])
                why = f"the report of {nodeid} can't be read ({store.said(error)})"
                broken.append(str(Broken(self._root / name, why)))
                continue
            texts.extend(map(self._id, row[0]))
            numbers.extend((started, *row[1]))
            branch = _encodable(run.branch) if run and run.branch else None
            number = min(run.number, _LARGEST) if run and run.number else None
            self._database.execute(
                "INSERT INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (key, _encodable(report["nodeid"]), *about, branch, same, started, number, name),
            )
        self._database.execute(
            "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)",
            (name, *stamp, "\n".join(broken) or None, texts.tobytes(), numbers.tobytes()),
        )

    def _id(self, text: str) -> int:
        """Return the id of a text; 0 stands for a missing one.

        Texts stay in the database when their runs go, so that ids which are known stay valid.
        """
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
            if not _is_made(self._database):
                raise sqlite3.OperationalError("another version of pytest-amp has taken it")
            yield
        except BaseException:
            with contextlib.suppress(sqlite3.DatabaseError):
                self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")


def _opened(root: Path) -> sqlite3.Connection:
    """Open the index's file, emptied if it was made for other columns, or else one in memory."""
    if root.is_dir():
        for _ in range(2):
            database = None
            try:
                database = _connected(root / NAME)
                if not _is_made(database):
                    _make(database)
                return database
            except sqlite3.DatabaseError as error:
                if database is not None:
                    database.close()
                if not _is_damage(error):
                    break
                with contextlib.suppress(OSError):  # it is not a database
                    (root / NAME).unlink()
    return _in_memory()


def _in_memory() -> sqlite3.Connection:
    database = _connected(":memory:")
    _make(database)
    return database


def _connected(name: Path | str) -> sqlite3.Connection:
    """Connect in a way that several threads may share, since plugins may run tests in threads."""
    return sqlite3.connect(name, timeout=_PATIENCE_S, isolation_level=None, check_same_thread=False)


def _make(database: sqlite3.Connection) -> None:
    """Create the tables, unless another process has just done so."""
    database.execute("BEGIN IMMEDIATE")
    if _is_made(database):
        database.execute("ROLLBACK")
        return
    for table in ("texts", "files", "results", "passing"):
        database.execute(f"DROP TABLE IF EXISTS {table}")
    for statement in filter(str.strip, _TABLES.split(";")):
        database.execute(statement)
    database.execute(f"PRAGMA user_version = {_VERSION}")
    database.execute("COMMIT")


def _is_made(database: sqlite3.Connection) -> bool:
    """Return whether the database has the tables of this version."""
    found: tuple[int] = database.execute("PRAGMA user_version").fetchone()
    return found == (_VERSION,)


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Return whether the error means damage, rather than a lock or a full or read-only disk."""
    return not isinstance(error, sqlite3.OperationalError) or "no such" in str(error)


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """Switch the garbage collector off.

    Parsed JSON has no cycles, and looking for them takes a fifth of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _batches(names: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(names)
    while batch := list(itertools.islice(rest, _AT_ONCE)):
        yield batch


def _row(run: SavedRun, report: Mapping[str, Any]) -> tuple[list[str], list[float]]:
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
    """Escape what UTF-8 can't encode, since SQLite stores UTF-8.

    A file name that is not UTF-8 has such characters: each invalid byte is half a surrogate pair.
    """
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def _number(column: Column, value: object) -> float:
    if value is None:
        return math.nan
    if not isinstance(value, (int, float)):
        raise TypeError(f"{column.name} is not a number")
    return float(value)
