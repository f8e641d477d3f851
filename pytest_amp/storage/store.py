"""Saved runs, read back: pytest-benchmark's files and ``--amp-json``'s, whatever state they are in.

What can't be read is a `Broken` that names the file and says why, and never the end of the rest.
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
    """A file that is no saved run. Its text names the file and says what is wrong."""

    def __init__(self, path: str | os.PathLike[str], why: str) -> None:
        super().__init__(f"{shown(path)}: {why}")


class File(NamedTuple):
    """A file of a storage that may be a run. `name`: from the root; `modified`: in nanoseconds."""

    root: Path
    name: str
    size: int
    modified: int

    @property
    def path(self) -> Path:
        return self.root / self.name


@dataclass(frozen=True)
class Run:
    """One saved run. `tests`: reports as plain JSON (schema 1) by `key`, in their order.

    `damaged`: what of it could not be read, a sentence each.
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
        """A test's report, as a value. KeyError without one, `Broken` where it can't be read."""
        try:
            return AmpReport.from_dict(self.tests[key])
        except (TypeError, ValueError, RecursionError) as error:
            nodeid = shown(self.tests[key]["nodeid"])
            why = f"the report of {nodeid} can't be read ({said(error)})"
            raise Broken(self.path, why) from None

    @property
    def name(self) -> str:
        """``0012`` where it has a number, else the file's name."""
        return f"{self.number:04}" if self.number is not None else shown(self.path.name)


def folder(storage: str | os.PathLike[str]) -> Path:
    """The folder that pytest-benchmark's ``--benchmark-storage`` means.

    ValueError for a storage that is none, such as Elasticsearch.
    """
    text = os.fspath(storage)
    kind, separator, rest = text.partition("://")
    if separator and kind != "file":
        raise ValueError(f"{text!r} is no folder: history is read from pytest-benchmark's files")
    return Path(rest if separator else text)


def files(root: Path, problems: list[str]) -> Iterator[File]:
    """The JSON files in a storage: in its machines' folders, and beside them.

    A storage that is not there has none. NotADirectoryError where it is a file, another OSError
    where it can't be read. What can't be read in it joins `problems`.
    """
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        with _told(entry.path, problems):
            below, inside = "", [entry]
            if entry.is_dir():
                below, inside = f"{entry.name}/", list(os.scandir(entry))
            for each in inside:
                if each.name.endswith(".json"):
                    with _told(each.path, problems):
                        found = each.stat()
                        if stat.S_ISREG(found.st_mode):
                            name = below + each.name
                            yield File(root, name, found.st_size, found.st_mtime_ns)


@contextlib.contextmanager
def _told(path: str, problems: list[str]) -> Iterator[None]:
    """What can't be read there is a problem, and no end; what is gone by now was never there."""
    try:
        yield
    except FileNotFoundError:
        pass
    except OSError as error:
        problems.append(str(Broken(path, _unreadable(error))))


def _unreadable(error: OSError) -> str:
    return f"can't be read ({error.strerror or error})"


def read(path: Path) -> Run:
    """A file of pytest-benchmark's or of ``--amp-json``. `Broken` where it is neither."""
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
    return Run(
        path=path,
        number=int(found[1]) if found else None,
        id=_text(run.get("id")),
        started=_text(run.get("started")) or "",
        commit=_text(run.get("commit")),
        branch=_text(run.get("branch")),
        dirty=dirty if isinstance(dirty, bool) else None,
        tests=tests,
        damaged=tuple(f"{shown(path)}: {each}" for each in damaged),
    )


def _load(path: Path) -> Any:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise Broken(path, "is no file")
        if found.st_size > MOST_BYTES:
            size = units.size(found.st_size)
            raise Broken(path, f"is too large to be a saved run ({size})")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise Broken(path, _unreadable(error)) from None
    except RecursionError:
        raise Broken(path, "is nested too deeply") from None
    except ValueError as error:  # also what is no UTF-8
        raise Broken(path, f"is no whole JSON ({error}); it may have been cut off") from None


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
        if report is not None:  # both arms' entries hold it; one may have been filtered out
            _add(tests, report, damaged)
    return run, tests


def _of_json(document: Mapping[str, Any], damaged: list[str]) -> dict[str, Mapping[str, Any]]:
    tests: dict[str, Mapping[str, Any]] = {}
    for report in document["tests"]:
        _add(tests, report, damaged)  # the last attempt of a rerun test stays
    return tests


def _add(tests: dict[str, Mapping[str, Any]], report: object, damaged: list[str]) -> None:
    nodeid = _mapping(report).get("nodeid")
    why = "a report in it names no test"
    if isinstance(report, dict) and isinstance(nodeid, str):
        try:
            tests[key(report)] = report
            return
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            why = f"the report of {shown(nodeid)} can't be read ({said(error)})"
    if why not in damaged:  # of both arms
        damaged.append(why)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def said(error: Exception) -> str:
    """What an exception says is wrong with a report, on one line."""
    return shown(f"no {error}" if isinstance(error, KeyError) else str(error))


def shown(text: str | os.PathLike[str]) -> str:
    """On one line, in characters that print, and not for ever."""
    plain = units.printable(os.fspath(text))
    return plain if len(plain) <= 200 else f"{plain[:150]}...{plain[-40:]}"
