"""The one place that touches pytest-benchmark's internals, which have no public way in.

Written for pytest-benchmark 5.1 to 5.3. tests/plugin/test_contract.py holds what is used of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_amp import units
from pytest_amp.storage import saving, store

FIXTURE = "benchmark"
# Of pytest-benchmark's session; its other options shape the table, and have defaults.
_ASKS_FOR_THE_TABLE = ("verbose", "compare", "compare_fail", "histogram")
_KEEPER = pytest.StashKey["Keeper"]()


class _Source:
    """What pytest-benchmark's Metadata takes from its fixture."""

    cprofile_stats = None
    has_error = False

    def __init__(self, item: pytest.Item, arm: str, group: str | None, report: Any) -> None:
        callspec = getattr(item, "callspec", None)
        self.name = f"{item.name}[{arm}]"
        self.fullname = f"{item.nodeid}[{arm}]"
        self.group = group
        self.param = callspec.id if callspec else None
        given = callspec.params if callspec else {}
        self.params = {**{name: _as_json(each) for name, each in given.items()}, "arm": arm}
        self.extra_info = {"amp": report}


def _as_json(value: object) -> object:
    """A parameter as JSON takes it: one that it does not take would cost the whole run."""
    simple = value is None or isinstance(value, (str, int, float))
    return value if simple else str(value)


def session_of(config: pytest.Config) -> Any:
    """pytest-benchmark's session; None where the plugin is off (``-p no:benchmark``)."""
    return getattr(config, "_benchmarksession", None)


def join(item: pytest.Item) -> None:
    """Make a test a benchmark, so that ``--benchmark-only`` and ``--benchmark-skip`` know it."""
    names: list[str] = getattr(item, "fixturenames", [])
    if session_of(item.config) is not None and FIXTURE not in names and _is_theirs(item):
        names.append(FIXTURE)


def _is_theirs(item: pytest.Item) -> bool:
    """Whether the name means pytest-benchmark's fixture here, and no other one of the project's."""
    found = item.session._fixturemanager.getfixturedefs(FIXTURE, item)
    return bool(found and found[-1].func.__module__.startswith("pytest_benchmark"))


def use(item: pytest.Item) -> None:
    """Say that the test's benchmark fixture is used, where only `join` asked for it."""
    fixture = getattr(item, "funcargs", {}).get(FIXTURE)
    if fixture is not None and FIXTURE not in _arguments(item):
        fixture._mode = "amp"


def _arguments(item: pytest.Item) -> Sequence[str]:
    return item._fixtureinfo.argnames if isinstance(item, pytest.Function) else ()


def add(item: pytest.Item, report: Mapping[str, Any], run: Callable[[], Mapping[str, Any]]) -> None:
    """Put two entries into the session, the arms' step times; none where nothing was timed.

    `report`: plain JSON. `run`: what identifies this run of pytest, as ``--amp-json`` has it. A
    rerun of a test takes the place of what it did before.
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
    """Where pytest-benchmark was asked to save, and is off; None otherwise."""
    session = session_of(config)
    if session is None or not session.disabled:
        return None
    if not (session.save or session.autosave or session.json):
        return None
    distributed = config.getoption("dist", "no") != "no"
    return (
        "nothing is saved: pytest-benchmark is off "
        + ("under xdist" if distributed else "here (--benchmark-disable)")
        + "; --amp-json writes all the same, and --amp-compare reads it"
    )


def keeper_of(config: pytest.Config) -> Keeper | None:
    """What watches over this run's saving; None where it has no entries of ours."""
    return config.stash.get(_KEEPER, None)


class Keeper:
    """Sees that what pytest-benchmark saves is there afterwards, whole.

    `notes` and `problems`: what there is to tell of that.
    """

    def __init__(self, session: Any, run: Mapping[str, Any]) -> None:
        self.run = run
        self.notes: list[str] = []
        self.problems: list[str] = []
        self._session = session
        self._copy: tuple[Path, str, Mapping[str, Any]] | None = None
        storage = session.storage
        if isinstance(getattr(storage, "path", None), Path):  # a folder, and no Elasticsearch
            self._original, storage.save = storage.save, self._save

    def name_run(self, output: dict[str, Any]) -> None:
        """Put the run into what is saved."""
        output["amp"] = {"run": dict(self.run)}

    def hide_table(self) -> None:
        """Leave pytest-benchmark's table out where it would only repeat ours, and nobody asked."""
        session = self._session
        ours = all(isinstance(each.fixture, _Source) for each in session.benchmarks)
        if ours and not any(getattr(session, name) for name in _ASKS_FOR_THE_TABLE):
            session.groups = None

    def look_again(self) -> None:
        """Another process may have written over this run since it was saved."""
        if self._copy is not None:
            self._ensure(*self._copy)

    def _save(self, output: Mapping[str, Any], name: str) -> None:
        folder: Path = self._session.storage.get(name).parent
        failed: Exception | None = None
        with saving.turn(folder):
            try:
                self._original(output, name)
            except Exception as error:  # noqa: BLE001 - whatever it is, the run is to be kept
                failed = error
            self._copy = folder, name, output
            self._ensure(folder, name, output, failed)

    def _ensure(
        self, folder: Path, name: str, output: Mapping[str, Any], failed: Exception | None = None
    ) -> None:
        """Keep a second copy where the run is not in the folder."""
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
                f"{path.name} is {units.size(size)}, and no run over {most} is read back: "
                "save fewer tests, or fewer --amp-steps, in one"
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
