"""Read and write the dtype maps of ``--amp-snapshot``, which are in ``__amp__`` beside a test file.

A test reads the map that is stored for it. New maps travel on the tests' reports. The process that
sees all reports writes them once, at the end of the run.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_amp import files
from pytest_amp.errors import AmpError, unless_our_bug
from pytest_amp.judge.dtype_map import StoredMap
from pytest_amp.judge.dtype_map_text import BrokenMapError, Section, Title, document, parse, section
from pytest_amp.plugin import collection
from pytest_amp.provenance import rank
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import RULES

__tracebackhide__ = unless_our_bug

DIRECTORY = "__amp__"
_CARGO = "amp_snapshot"


def stored_for(item: pytest.Item, update: bool) -> StoredMap | None:
    """Return what is stored for a test's file; None in all ranks but the first.

    Args:
        item: the test.
        update: whether the run updates the maps.

    Raises:
        AmpError: the file can't be read.
    """
    if not _first_rank():
        return None
    file = _map_of(item.path)
    shown = _from_rootdir(item.config, file)
    return StoredMap(shown, _name(item), update, _read(file, shown))


def _map_of(test_file: Path) -> Path:
    return test_file.parent / DIRECTORY / f"{test_file.stem}.txt"


def _from_rootdir(config: pytest.Config, path: Path) -> str:
    """Return the path relative to pytest's root directory."""
    return Path(os.path.relpath(path, config.rootpath)).as_posix()


def _name(item: pytest.Item) -> str:
    """Return a test's name in its file, such as ``TestClass::test_it[a]``.

    It does not come from the node id, because xdist's loadgroup adds to that.
    """
    classes = [node.name for node in item.listchain() if isinstance(node, pytest.Class)]
    return "::".join([*classes, collection.name_once(item)])


def _read(file: Path, shown: str) -> Mapping[Title, Section]:
    """Return the stored maps; none if there is no file.

    Raises:
        AmpError: the file can't be read.
    """
    try:
        return parse(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except BrokenMapError as error:
        raise AmpError(
            f"{shown}:{error.line}: {error}; correct the stored dtype maps, or delete the file and "
            "write it again with --amp-snapshot=update"
        ) from None
    except (OSError, UnicodeError) as error:
        raise AmpError(f"{shown}: the stored dtype maps can't be read: {error}") from None


def _first_rank() -> bool:
    return not rank()


class MapFiles:
    """Updates the files of maps at the end of a run, and reports maps that no test uses."""

    def __init__(self, config: pytest.Config, update: bool) -> None:
        self._config = config
        self._update = update
        self._reports: dict[tuple[str, Title], AmpReport] = {}
        self._items: list[pytest.Item] = []
        self._modules: dict[str, Path] = {}
        self._bad: set[str] = set()
        # By test file, the amp tests in it; None if not all of them were collected.
        self._tests: dict[str, list[str] | None] = {}
        self._said: list[str] = []

    # What was collected; on xdist's workers, if there are any.

    def pytest_collectstart(self, collector: pytest.Collector) -> None:
        """Note a test file."""
        if isinstance(collector, pytest.Module):
            self._modules[collector.nodeid] = collector.path

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a test file that can't be collected: its maps may still be in use."""
        if not report.passed:
            self._bad.add(report.nodeid.partition("::")[0])

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Note a test before anything is deselected."""
        self._items.append(item)

    def _collected(self) -> dict[str, list[str] | None]:
        """Return the amp tests by test file, or None for a file that was not collected whole.

        Deselected tests are included: they exist, even if they did not run.
        """
        names: dict[Path, list[str]] = {}
        for item in self._items:
            if collection.is_amp(item) or "amp_benchmark" in getattr(item, "fixturenames", ()):
                names.setdefault(item.path, []).append(_name(item))
        here = self._config.invocation_params.dir
        in_part = {(here / arg.partition("::")[0]).resolve() for arg in self._named_in_part()}
        last_failed = self._config.getoption("lf", False)  # leaves out passed tests
        return {
            str(path): None
            if nodeid in self._bad or path.resolve() in in_part or last_failed
            else names.get(path, [])
            for nodeid, path in self._modules.items()
        }

    def _named_in_part(self) -> Iterator[str]:
        return (arg for arg in self._config.args if "::" in arg)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take what an xdist worker collected."""
        self._tests.update(getattr(node, "workeroutput", {}).get(_CARGO, {}))

    # What ran, and what becomes of its maps.

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the map that a test report carries, if the run updates the files."""
        data = getattr(report, "amp", None)
        if data and data["dtype_map"] and self._update:
            found = AmpReport.from_dict(data)
            assert found.dtype_map is not None
            assert found.environment is not None
            where = found.environment
            kind = "cuda" if where.flags.get(RULES) else where.device_type
            title = Title(found.dtype_map.test, kind, where.dtype)
            self._reports[found.dtype_map.file, title] = found

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Update the files, and look for maps that no test uses."""
        self._tests.update(self._collected())
        if hasattr(self._config, "workeroutput"):
            self._config.workeroutput[_CARGO] = self._tests
            return
        if self._config.option.collectonly or not _first_rank():
            return
        known = {
            _from_rootdir(self._config, _map_of(Path(path))): tests
            for path, tests in self._tests.items()
        }
        for shown in sorted({*known, *(shown for shown, _ in self._reports)}):
            try:
                self._finish(shown, known.get(shown))
            except (AmpError, OSError) as error:
                if not self._update:
                    continue  # the tests have reported it
                session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
                what = error if isinstance(error, AmpError) else f"{shown}: {error}"
                sys.stderr.write(f"pytest-amp: --amp-snapshot=update: {what}\n")
        self._said += self._without_test_file()

    def _finish(self, shown: str, tests: Iterable[str] | None) -> None:
        """Update one file, or note which of its maps no longer have a test."""
        file = self._config.rootpath / shown
        stored = _read(file, shown)
        gone = [] if tests is None else [title for title in stored if title.test not in tests]
        if not self._update:
            self._said += [
                f"{shown}: no test for {title} (--amp-snapshot=update removes it)" for title in gone
            ]
            return
        sections = {title: kept.text for title, kept in stored.items() if title not in gone}
        done = Counter(removed=len(gone))
        for (where, title), report in self._reports.items():
            found, environment = report.dtype_map, report.environment
            if where != shown or found is None or environment is None:
                continue
            if found.stored and not found.changes:
                continue
            sections[title] = section(title, found.lines, f"torch {environment.torch}")
            done["updated" if found.stored else "created"] += 1
        if not any(done.values()):
            return
        if sections:
            files.write(file, document(sections).encode("ascii"))
        else:
            file.unlink()
        self._said.append(
            f"{shown}: " + ", ".join(f"{n} {what}" for what, n in sorted(done.items()) if n)
        )

    def _without_test_file(self) -> Iterator[str]:
        for directory in sorted({Path(path).parent for path in self._tests}):
            for file in sorted(directory.glob(f"{DIRECTORY}/*.txt")):
                test_file = directory / f"{file.stem}.py"
                if not test_file.exists():
                    stored, missing = (_from_rootdir(self._config, p) for p in (file, test_file))
                    yield f"{stored}: {missing} no longer exists: delete this file"

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write what was done to the files, and what is left over in them."""
        if self._said:
            terminalreporter.section("pytest-amp: dtype maps")
            for line in self._said:
                terminalreporter.line(line)
