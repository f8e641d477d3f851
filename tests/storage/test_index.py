"""The index follows its storage, survives what happens to it, and warns by name."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_amp import files
from pytest_amp.storage.index import NAME, Index
from pytest_amp.storage.key import key
from tests.helpers.saved_runs import MACHINE, document, report, save

STEP = "test_it.py::test_step"


def passing(root: Path, branch: str | None = None, **more: object) -> list[str]:
    """The files of the passing results of the usual test, the newest first."""
    with Index(root) as index:
        same = key(report(**more).to_dict())  # type: ignore[arg-type]
        return [found.path.name[:4] for found in index.of_key(same, branch=branch)]


def rows(root: Path) -> int:
    with Index(root) as index:
        return len(index.table().texts)


def test_passing_results_of_a_key_come_newest_first(tmp_path: Path) -> None:
    save(tmp_path, 1, document(report(day=2)))
    save(tmp_path, 2, document(report(day=9)))
    save(tmp_path, 3, document(report(day=5), report("test_it.py::test_other", day=6)))
    save(tmp_path, 4, document(report(day=20, verdict="fail")))
    save(tmp_path, 5, document(report(day=21, verdict="inconclusive")))
    assert passing(tmp_path) == ["0002", "0003", "0001"]


def test_results_of_one_branch_only(tmp_path: Path) -> None:
    save(tmp_path, 1, document(report(day=1), branch="main"))
    save(tmp_path, 2, document(report(day=2), branch="topic"))
    assert passing(tmp_path, "main") == ["0001"]
    assert passing(tmp_path, "none") == []
    assert passing(tmp_path) == ["0002", "0001"]


def test_another_device_dtype_or_setting_is_another_key(tmp_path: Path) -> None:
    from dataclasses import replace

    from pytest_amp.results.values import Setting
    from tests.helpers.saved_runs import ENVIRONMENT, SETTINGS

    save(tmp_path, 1, document(report()))
    mig = replace(ENVIRONMENT, device="NVIDIA H100 MIG 1g.10gb")
    half = replace(ENVIRONMENT, dtype="float16")
    longer = {**SETTINGS, "steps": Setting(50, "marker")}
    newer = replace(ENVIRONMENT, torch="2.14.0", cuda="13.0", flags={"cudnn.benchmark": True})
    gated = {**SETTINGS, "min_speedup": Setting(1.3, "cli")}
    for other in ({"environment": mig}, {"environment": half}, {"settings": longer}):
        assert passing(tmp_path, **other) == []
    for same in ({"environment": newer}, {"settings": gated}):
        assert passing(tmp_path, **same) == ["0001"]


def test_it_follows_files_that_come_change_and_go(tmp_path: Path) -> None:
    path = save(tmp_path, 1, document(report()))
    assert passing(tmp_path) == ["0001"]
    save(tmp_path, 2, document(report(day=2)))
    assert passing(tmp_path) == ["0002", "0001"]
    path.write_text("{}")
    assert passing(tmp_path) == ["0002"]
    path.unlink()
    (path.parent / "0002_run.json").unlink()
    assert passing(tmp_path) == []
    assert rows(tmp_path) == 0


def test_a_file_that_goes_while_the_folder_is_read_was_never_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytest_amp.storage import store

    save(tmp_path, 1, document(report()))
    save(tmp_path, 2, document(report(day=2)))
    listed = store.files

    def files(root: Path, problems: list[str]) -> Iterator[store.File]:
        for file in listed(root, problems):
            if file.path.name.startswith("0002"):
                file.path.unlink()
            yield file

    monkeypatch.setattr(store, "files", files)
    assert passing(tmp_path) == ["0001"]


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_amp.storage import store

    save(tmp_path, 1, document(report()))
    save(tmp_path, 2, "broken")
    Index(tmp_path).close()

    def read(path: Path) -> None:
        raise AssertionError(path)

    monkeypatch.setattr(store, "read", read)
    with Index(tmp_path) as index:
        assert len(index.warnings) == 1  # it is told of each time


def test_what_can_t_be_read_is_a_warning_that_names_it(tmp_path: Path) -> None:
    broken = save(tmp_path, 1, '{"benchmarks": [')
    content = document(report(), report("test_it.py::test_other"))
    content["benchmarks"][3]["extra_info"]["amp"] = content["benchmarks"][2]["extra_info"]["amp"]
    del content["benchmarks"][2]["extra_info"]["amp"]["arms"]
    damaged = save(tmp_path, 2, content)
    with Index(tmp_path) as index:
        first, second = index.warnings
    assert first.startswith(f"{broken}: is not complete JSON")
    assert second.startswith(f"{damaged}: the report of test_it.py::test_other can't be read")
    assert passing(tmp_path) == ["0002"]


@pytest.mark.parametrize(
    "damage",
    [b"", b"no database at all", random.Random(0).randbytes(5000)],
    ids=["empty", "a text", "noise"],
)
def test_an_index_that_is_damaged_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    save(tmp_path, 1, document(report()))
    Index(tmp_path).close()
    (tmp_path / NAME).write_bytes(damage)
    assert passing(tmp_path) == ["0001"]


def test_an_index_of_another_version_is_made_anew(tmp_path: Path) -> None:
    save(tmp_path, 1, document(report()))
    Index(tmp_path).close()
    with sqlite3.connect(tmp_path / NAME) as database:
        database.execute("DROP TABLE results")
        database.execute("PRAGMA user_version = 5")
    assert passing(tmp_path) == ["0001"]


def test_a_table_that_is_gone_is_no_end(tmp_path: Path) -> None:
    save(tmp_path, 1, document(report()))
    Index(tmp_path).close()
    with sqlite3.connect(tmp_path / NAME) as database:
        database.execute("DROP TABLE files")
    assert passing(tmp_path) == ["0001"]


@pytest.mark.parametrize("page", range(12))
def test_a_page_that_is_damaged_costs_no_result(tmp_path: Path, page: int) -> None:
    for number in range(1, 9):
        save(tmp_path, number, document(report(day=number)))
    Index(tmp_path).close()
    data = bytearray((tmp_path / NAME).read_bytes())
    place = page * 4096 % len(data)
    data[place : place + 4096] = random.Random(page).randbytes(4096)
    (tmp_path / NAME).write_bytes(data)
    expected = [f"{number:04}" for number in range(8, 0, -1)]
    assert passing(tmp_path) == expected
    assert rows(tmp_path) > 0


def test_processes_that_make_the_index_at_once_all_find_everything(tmp_path: Path) -> None:
    for number in range(1, 31):
        save(tmp_path, number, document(report(day=1 + number % 28)))
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    for _ in range(10):
        (tmp_path / NAME).unlink(missing_ok=True)
        found = context.Queue()
        processes = [context.Process(target=_count, args=(tmp_path, found)) for _ in range(6)]
        for process in processes:
            process.start()
        assert [found.get(timeout=60) for _ in processes] == [30] * 6
        for process in processes:
            process.join()
        with sqlite3.connect(tmp_path / NAME) as database:
            assert database.execute("SELECT COUNT(*) FROM results").fetchone() == (30,)


def _count(root: Path, found: multiprocessing.queues.Queue[int]) -> None:
    found.put(len(passing(root)))


def test_a_storage_that_can_t_be_written_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, document(report()))
    connect = sqlite3.connect

    def read_only(name: object, *args: object, **kwargs: object) -> sqlite3.Connection:
        if name != ":memory:":
            raise sqlite3.OperationalError("attempt to write a readonly database")
        return connect(":memory:", isolation_level=None)

    monkeypatch.setattr(sqlite3, "connect", read_only)
    assert passing(tmp_path) == ["0001"]
    assert not (tmp_path / NAME).exists()


def test_nothing_is_made_where_there_is_no_storage(tmp_path: Path) -> None:
    assert passing(tmp_path / "none") == []
    assert list(tmp_path.iterdir()) == []


def _read_again_and_again(root: Path, until: float) -> None:
    while time.monotonic() < until:
        with Index(root) as index:
            assert not index.warnings


def test_readers_and_writers_at_once_see_whole_runs(tmp_path: Path) -> None:
    save(tmp_path, 1, document(report()))
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    until = time.monotonic() + 1.5
    readers = [
        context.Process(target=_read_again_and_again, args=(tmp_path, until)) for _ in range(4)
    ]
    for reader in readers:
        reader.start()
    number = 1
    while time.monotonic() < until and number < 60:
        number += 1
        path = tmp_path / MACHINE / f"{number:04}_run.json"
        files.write(path, json.dumps(document(report(day=1 + number % 28))).encode())
    for reader in readers:
        reader.join()
        assert reader.exitcode == 0
    assert len(passing(tmp_path)) == number


def test_a_name_that_is_no_utf_8_is_told_and_the_others_are_read(tmp_path: Path) -> None:
    path = save(tmp_path, 1, document(report()))
    odd = Path(os.fsdecode(os.fsencode(path.parent) + b"/0002_\xff.json"))
    odd.write_text(path.read_text())
    assert passing(tmp_path) == ["0001"]
    for paths in (None, [path, odd]):
        with Index(tmp_path, paths) as index:
            [warning] = index.warnings
            assert warning.endswith("0002_\\udcff.json: its name is not UTF-8")
            assert index.size() == (1, 1)
