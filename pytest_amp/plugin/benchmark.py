"""Put our results into pytest-benchmark, and see that it saves them.

pytest-benchmark has no public interface for this, so this module uses its internals, and no other
module does. It is written for versions 5.1 to 5.3; tests/plugin/test_contract.py checks all that it
relies on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_amp import units
from pytest_amp.plugin.collection import id_of
from pytest_amp.storage import saving, store

FIXTURE = "benchmark"
# The options of pytest-benchmark that ask for its table. The others shape the table, and have
# defaults.
_ASKS_FOR_THE_TABLE = ("verbose", "compare", "compare_fail", "histogram")
_KEEPER = pytest.StashKey["Keeper"]()


class _Source:
    """Stands for the fixture from which pytest-benchmark's Metadata takes names and parameters."""

    cprofile_stats = None
    has_error = False

    def __init__(self, item: pytest.Item, arm: str, group: str | None, report: Any) -> None:
        callspec = getattr(item, "callspec", None)
        self.name = f"{item.name}[{arm}]"
        self.fullname = f"{id_of(item)}[{arm}]"
        self.group = group
        self.param = callspec.id if callspec else None
        given = callspec.params if callspec else {}
        self.params = {**{name: _as_json(each) for name, each in given.items()}, "arm": arm}
        self.extra_info = {"amp": report}


def _as_json(value: object) -> object:
    """Return a parameter as JSON can hold it; with any other the run could not be saved."""
    simple = value is None or isinstance(value, (str, int, float))
    return value if simple else str(value)


def session_of(config: pytest.Config) -> Any:
    """Return pytest-benchmark's session; None if the plugin is off (``-p no:benchmark``)."""
    return getattr(config, "_benchmarksession", None)


def join(item: pytest.Item) -> None:
    """Make a test a benchmark, for ``--benchmark-only`` and ``--benchmark-skip`` to know it."""
    names: list[str] = getattr(item, "fixturenames", [])
    if session_of(item.config) is not None and FIXTURE not in names and _is_theirs(item):
        names.append(FIXTURE)


def _is_theirs(item: pytest.Item) -> bool:
    """Return whether the fixture of that name is pytest-benchmark's, and not the project's own."""
    found = item.session._fixturemanager.getfixturedefs(FIXTURE, item)
    return bool(found and found[-1].func.__module__.startswith("pytest_benchmark"))


def use(item: pytest.Item) -> None:
    """Mark the benchmark fixture as used if only `join` asked for it, to avoid a warning."""
    fixture = getattr(item, "funcargs", {}).get(FIXTURE)
    if fixture is not None and FIXTURE not in _arguments(item):
        fixture._mode = "amp"


def _arguments(item: pytest.Item) -> Sequence[str]:
    return item._fixtureinfo.argnames if isinstance(item, pytest.Function) else ()


def add(item: pytest.Item, report: Mapping[str, Any], run: Callable[[], Mapping[str, Any]]) -> None:
    """Add an entry with the step times of each arm to pytest-benchmark's session.

    Nothing is added if nothing was timed. If a test is run again, its new entries replace the old.

    Args:
        item: the test.
        report: its report as plain JSON.
        run: returns what identifies this run of pytest, as in ``--amp-json``.
    """
    session = session_of(item.config)
    if session is None or session.disabled or report["speedup"] is None:  # as under xdist
        return
    from pytest_benchmark.stats import Metadata

    if _KEEPER not in item.config.stash:
        item.config.stash[_KEEPER] = Keeper(session, run())
    fixture = getattr(item, "funcargs", {}).get(FIXTURE)
    group, iterations = getattr(fixture, "group", None), report["speedup"]["block_steps"]
    for arm, measured in report["arms"].items():
        source = _Source(item, arm, group, report)
        session.benchmarks[:] = [
            each for each in session.benchmarks if each.fullname != source.fullname
        ]
        entry = Metadata(source, iterations=iterations, options={})
        entry.stats.data.extend(measured["step_times_s"])  # before anything asks for a statistic
        session.benchmarks.append(entry)


def why_nothing_is_saved(config: pytest.Config) -> str | None:
    """Return a note if pytest-benchmark was asked to save, but is off; None otherwise."""
    session = session_of(config)
    if session is None or not session.disabled:
        return None
    if not (session.save or session.autosave or session.json):
        return None
    distributed = config.getoption("dist", "no") != "no"
    return (
        "nothing is saved: pytest-benchmark is off "
        + ("under xdist" if distributed else "here (--benchmark-disable)")
        + "; --amp-json still writes its report, which --amp-compare can read"
    )


def keeper_of(config: pytest.Config) -> Keeper | None:
    """Return the keeper of this run; None if the run has no entries of ours."""
    return config.stash.get(_KEEPER, None)


class Keeper:
    """Makes sure that the run which pytest-benchmark saves is complete, and is not overwritten.

    Attributes:
        run: what identifies this run of pytest.
        notes: what the user should know about the saving.
        problems: why the run could not be saved.
    """

    def __init__(self, session: Any, run: Mapping[str, Any]) -> None:
        self.run = run
        self.notes: list[str] = []
        self.problems: list[str] = []
        self._session = session
        self._copy: tuple[Path, str, Mapping[str, Any]] | None = None
        storage = session.storage
        if isinstance(getattr(storage, "path", None), Path):  # a folder, and not Elasticsearch
            self._original, storage.save = storage.save, self._save

    def name_run(self, output: dict[str, Any]) -> None:
        """Add what identifies the run to what is saved."""
        output["amp"] = {"run": dict(self.run)}

    def hide_table(self) -> None:
        """Hide pytest-benchmark's table if it has only our entries, and no option asks for it."""
        session = self._session
        ours = all(isinstance(each.fixture, _Source) for each in session.benchmarks)
        if ours and not any(getattr(session, name) for name in _ASKS_FOR_THE_TABLE):
            session.groups = None

    def look_again(self) -> None:
        """Save the run once more if another process has overwritten it."""
        if self._copy is not None:
            self._ensure(*self._copy)

    def _save(self, output: Mapping[str, Any], name: str) -> None:
        folder: Path = self._session.storage.get(name).parent
        failed: Exception | None = None
        with saving.turn(folder):
            try:
                self._original(output, name)
            except Exception as error:  # noqa: BLE001 - the run must be kept in any case
                failed = error
            self._copy = folder, name, output
            self._ensure(folder, name, output, failed)

    def _ensure(
        self, folder: Path, name: str, output: Mapping[str, Any], failed: Exception | None = None
    ) -> None:
        """Save the run under another name if the folder does not have it."""
        path = saving.saved_file(folder, self.run["id"])
        if path is None:
            try:
                path = self._second(folder, name, output)
            except (OSError, TypeError, ValueError) as error:
                why = error if failed is None or isinstance(failed, AssertionError) else failed
                self.problems.append(f"this run could not be saved in {folder}: {why}")
                self._copy = None
                return
        size = path.stat().st_size
        if size > store.MOST_BYTES:
            most = units.size(store.MOST_BYTES)
            self._tell(
                f"{path.name} is {units.size(size)}, and runs larger than {most} are not read "
                "back: save fewer tests in one run, or use fewer --amp-steps"
            )

    def _second(self, folder: Path, name: str, output: Mapping[str, Any]) -> Path:
        from pytest_benchmark.utils import safe_dumps

        data = safe_dumps(output, ensure_ascii=True, indent=4).encode()
        path = saving.keep(folder, name, self.run["id"], data)
        self._tell(
            f"another run took the file that pytest-benchmark chose; this one is {path.name}"
        )
        return path

    def _tell(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)
