"""A saved run stays, whoever else saves: in one process, in many, and where there is no room."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pytest_benchmark.storage.file import FileStorage

from pytest_amp import files
from pytest_amp.plugin.benchmark import Keeper
from pytest_amp.storage import saving

PROCESSES, ROUNDS = 4, 5


def session(folder: Path) -> Any:
    """As much of pytest-benchmark's session as a keeper looks at."""
    logger = SimpleNamespace(info=lambda *_: None)
    return SimpleNamespace(storage=FileStorage(str(folder), logger, "machine"))


def keeper(folder: Path, run_id: str) -> Keeper:
    return Keeper(session(folder), {"id": run_id})


def save(keeper: Keeper, name: str = "auto") -> None:
    output: dict[str, Any] = {"benchmarks": []}
    keeper.name_run(output)
    keeper._session.storage.save(output, name)


def ids(folder: Path) -> list[str]:
    return sorted(
        json.loads(path.read_text())["amp"]["run"]["id"] for path in folder.glob("*/*.json")
    )


def _save_many(folder: Path, number: int) -> None:
    for turn in range(ROUNDS):
        mine = keeper(folder, f"{number:04}{turn:04}")
        save(mine)
        mine.look_again()


def test_processes_that_save_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    workers = [context.Process(target=_save_many, args=(tmp_path, n)) for n in range(PROCESSES)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert ids(tmp_path) == sorted(f"{n:04}{t:04}" for n in range(PROCESSES) for t in range(ROUNDS))


def test_a_run_that_was_written_over_is_kept_under_another_name(tmp_path: Path) -> None:
    mine = keeper(tmp_path, "a" * 32)
    save(mine)
    [path] = tmp_path.glob("*/*.json")
    path.write_text(json.dumps({"benchmarks": [], "amp": {"run": {"id": "b" * 32}}}))
    mine.look_again()
    assert ids(tmp_path) == ["a" * 32, "b" * 32]
    assert mine.notes == [
        "another run took the file that pytest-benchmark chose; this one is 0002_auto-aaaaaaaa.json"
    ]


def test_a_name_that_is_taken_is_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest-benchmark asserts that its file is new, and would end the session."""
    mine = keeper(tmp_path, "a" * 32)
    (tmp_path / "machine").mkdir()
    (tmp_path / "machine" / "0001_auto.json").write_text("{}")
    monkeypatch.setattr(FileStorage, "_next_num", "0001")
    save(mine)
    assert mine.problems == []
    assert (tmp_path / "machine" / "0002_auto-aaaaaaaa.json").exists()


def test_runs_beyond_9999_go_on_counting(tmp_path: Path) -> None:
    (tmp_path / "machine").mkdir()
    for number in (9999, 10000, 10001):
        (tmp_path / "machine" / f"{number}_x.json").write_text("{}")
    path = saving.keep(tmp_path / "machine", "x", "c" * 32, b"{}")
    assert path.name == "10002_x-cccccccc.json"


def test_a_storage_that_is_a_file_is_told_and_raises_nothing(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("not a folder")
    mine = keeper(tmp_path / "store", "a" * 32)
    save(mine)
    [problem] = mine.problems
    assert f"this run could not be saved in {tmp_path / 'store' / 'machine'}: " in problem
    mine.look_again()
    assert len(mine.problems) == 1
    assert (tmp_path / "store").read_text() == "not a folder"


def test_a_full_disk_is_told_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    mine = keeper(tmp_path, "a" * 32)
    mine._original = full
    monkeypatch.setattr(os, "fsync", full)
    save(mine)
    [problem] = mine.problems
    assert "No space left on device" in problem
    assert [each.name for each in (tmp_path / "machine").iterdir()] == [".amp.lock"]


def test_only_a_whole_file_counts_as_kept(tmp_path: Path) -> None:
    text = json.dumps({"amp": {"run": {"id": "a" * 32}}, "benchmarks": []})
    (tmp_path / "0001_x.json").write_text(text[:-3])
    assert saving.saved_file(tmp_path, "a" * 32) is None
    (tmp_path / "0002_x.json").write_text(text)
    assert saving.saved_file(tmp_path, "a" * 32) == tmp_path / "0002_x.json"


@pytest.mark.parametrize("text", ["[]", "3", '{"amp": 1}', '{"amp": {"run": "id"}}', "nonsense"])
def test_other_files_are_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "0001_x.json").write_text(text)
    assert saving.saved_file(tmp_path, "id") is None


def test_a_new_file_never_replaces_another(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    files.write_new(path, b"first")
    with pytest.raises(FileExistsError):
        files.write_new(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]
