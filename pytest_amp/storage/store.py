"""Read saved runs, written by pytest-benchmark or by ``--amp-json``, whatever state they are in.

A file that can't be read raises `Broken`, which names the file and says why. It never keeps the
other files from being read.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from pytest_amp import units
from pytest_amp.results.report import AmpReport
from pytest_amp.storage.key import key
from pytest_amp.storage.saving import NUMBERED

DEFAULT: Final = ".benchmarks"
MOST_BYTES: Final = 64 * 2**20


class Broken(Exception):
    """A file is not a saved run. The text names the file and says what is wrong."""

    def __init__(self, path: str | os.PathLike[str], why: str) -> None:
        super().__init__(f"{printable(path)}: {why}")


class File(NamedTuple):
    """A file of a storage that may be a run.

    Attributes:
        root: the storage's folder.
        name: the path from there.
        size: bytes.
        modified: the time of the last change, in nanoseconds.
    """

    root: Path
    name: str
    size: int
    modified: int

    @property
    def path(self) -> Path:
        """The path of the file."""
        return self.root / self.name


@dataclass(frozen=True)
class SavedRun:
    """One saved run.

    Attributes:
        path: the file.
        number: the number that pytest-benchmark gave it; None without one.
        id: the run's id.
        started: when it started, in ISO 8601; "" if unknown.
        commit: the commit that was checked out.
        branch: the branch that was checked out.
        dirty: whether tracked files differed from the commit.
        tests: the reports as plain JSON (schema 1), by `key`, in the file's order.
        damaged: what could not be read, one sentence each.
    """

    path: Path
    number: int | None
    id: str | None
    started: str
    commit: str | None
    branch: str | None
    dirty: bool | None
    tests: Mapping[str, Mapping[str, Any]]
    damaged: tuple[str, ...] = ()

    def report(self, key: str) -> AmpReport:
        """Return a test's report.

        Raises:
            KeyError: the run has no such test.
            Broken: the report can't be read.
        """
        try:
            return AmpReport.from_dict(self.tests[key])
        except (TypeError, ValueError, RecursionError) as error:
            nodeid = printable(self.tests[key]["nodeid"])
            why = f"the report of {nodeid} can't be read ({said(error)})"
            raise Broken(self.path, why) from None

    @property
    def name(self) -> str:
        """``0012`` if the run has a number, else the file's name."""
        return f"{self.number:04}" if self.number is not None else printable(self.path.name)


def folder(storage: str | os.PathLike[str]) -> Path:
    """Return the folder that pytest-benchmark's ``--benchmark-storage`` means.

    Raises:
        ValueError: the storage is not a folder, but for example Elasticsearch.
    """
    text = os.fspath(storage)
    kind, separator, rest = text.partition("://")
    if separator and kind != "file":
        raise ValueError(f"{text!r} is not a folder: history is read from pytest-benchmark's files")
    return Path(rest if separator else text)


def files(root: Path, problems: list[str]) -> Iterator[File]:
    """Yield the JSON files of a storage: those in its folders, one per machine, and beside them.

    A storage that does not exist has none. A file or folder in it that can't be read is skipped,
    and described in `problems`.

    Raises:
        NotADirectoryError: the storage is a file.
        OSError: the storage can't be read.
    """
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        with _noting(entry.path, problems):
            below, inside = "", [entry]
            if entry.is_dir():
                below, inside = f"{entry.name}/", list(os.scandir(entry))
            for each in inside:
                if each.name.endswith(".json"):
                    with _noting(each.path, problems):
                        found = each.stat()
                        if stat.S_ISREG(found.st_mode):
                            name = below + each.name
                            yield File(root, name, found.st_size, found.st_mtime_ns)


@contextlib.contextmanager
def _noting(path: str, problems: list[str]) -> Iterator[None]:
    """Record what can't be read as a problem and go on; ignore what has disappeared meanwhile."""
    try:
        yield
    except FileNotFoundError:
        pass
    except OSError as error:
        problems.append(str(Broken(path, _unreadable(error))))


def _unreadable(error: OSError) -> str:
    return f"can't be read ({error.strerror or error})"


def read(path: Path) -> SavedRun:
    """Read a file that pytest-benchmark or ``--amp-json`` wrote.

    Raises:
        Broken: the file is neither, or can't be read.
    """
    document = _load(path)
    if not isinstance(document, dict):
        raise Broken(path, f"holds a JSON {type(document).__name__}, not a saved run")
    found = NUMBERED.fullmatch(path.name)
    damaged: list[str] = []
    if isinstance(document.get("benchmarks"), list):
        run, tests = _of_benchmark(document, damaged)
    elif isinstance(document.get("tests"), list) and "schema" in document:
        if document["schema"] != 1:
            schema = str(document["schema"])[:20]
            raise Broken(path, f"is of schema {schema}, and this pytest-amp reads schema 1")
        run, tests = _mapping(document.get("run")), _of_json(document, damaged)
    else:
        raise Broken(path, "is neither a file of pytest-benchmark's nor one of --amp-json")
    dirty = run.get("dirty")
    return SavedRun(
        path=path,
        number=int(found[1]) if found else None,
        id=_text(run.get("id")),
        started=_text(run.get("started")) or "",
        commit=_text(run.get("commit")),
        branch=_text(run.get("branch")),
        dirty=dirty if isinstance(dirty, bool) else None,
        tests=tests,
        damaged=tuple(f"{printable(path)}: {each}" for each in damaged),
    )


def _load(path: Path) -> Any:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise Broken(path, "is not a file")
        if found.st_size > MOST_BYTES:
            size = units.size(found.st_size)
            raise Broken(path, f"is too large to be a saved run ({size})")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise Broken(path, _unreadable(error)) from None
    except RecursionError:
        raise Broken(path, "is nested too deeply") from None
    except ValueError as error:  # including bytes that are not UTF-8
        raise Broken(path, f"is not complete JSON ({error}); it may have been cut off") from None


def _of_benchmark(
    document: Mapping[str, Any], damaged: list[str]
) -> tuple[Mapping[str, Any], dict[str, Mapping[str, Any]]]:
    commit = _mapping(document.get("commit_info"))
    run = {
        "started": document.get("datetime"),
        "commit": commit.get("id"),
        "branch": commit.get("branch"),
        "dirty": commit.get("dirty"),
        **_mapping(_mapping(document.get("amp")).get("run")),
    }
    tests: dict[str, Mapping[str, Any]] = {}
    for entry in document["benchmarks"]:
        report = _mapping(_mapping(entry).get("extra_info")).get("amp")
        if report is not None:  # both arms' entries have it, since one may have been filtered out
            _add(tests, report, damaged)
    return run, tests


def _of_json(document: Mapping[str, Any], damaged: list[str]) -> dict[str, Mapping[str, Any]]:
    tests: dict[str, Mapping[str, Any]] = {}
    for report in document["tests"]:
        _add(tests, report, damaged)  # of a test that was rerun, the last attempt stays
    return tests


def _add(tests: dict[str, Mapping[str, Any]], report: object, damaged: list[str]) -> None:
    nodeid = _mapping(report).get("nodeid")
    why = "a report in it names no test"
    if isinstance(report, dict) and isinstance(nodeid, str):
        try:
            tests[key(report)] = report
            return
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            why = f"the report of {printable(nodeid)} can't be read ({said(error)})"
    if why not in damaged:  # both arms' entries say the same
        damaged.append(why)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def said(error: Exception) -> str:
    """Return what an exception says is wrong with a report, on one line."""
    return printable(f"no {error}" if isinstance(error, KeyError) else str(error))


def printable(text: str | os.PathLike[str]) -> str:
    """Make a stored text safe to print: on one line, printable, and not too long."""
    plain = units.printable(os.fspath(text))
    return plain if len(plain) <= 200 else f"{plain[:150]}...{plain[-40:]}"
