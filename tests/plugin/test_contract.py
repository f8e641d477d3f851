"""What pytest_amp.plugin.benchmark relies on inside pytest-benchmark."""

from __future__ import annotations

import inspect
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
from pytest_benchmark import fixture, session, stats, utils
from pytest_benchmark.storage import file

WRITTEN_FOR = (
    f"pytest_amp/plugin/benchmark.py was written for pytest-benchmark 5.1 to 5.3, and this is "
    f"{version('pytest-benchmark')}: "
)


def holds(promise: bool, what: str) -> None:
    assert promise, WRITTEN_FOR + what


def test_metadata_takes_these_from_its_fixture_and_its_samples_from_a_list() -> None:
    names = ("name", "fullname", "group", "param", "params", "extra_info", "cprofile_stats")
    source = SimpleNamespace(**dict.fromkeys(names), has_error=False)
    entry = stats.Metadata(source, iterations=3, options={})
    entry.stats.data.extend([1.0, 2.0, 3.0])
    written = entry.as_dict()
    holds(written["stats"]["median"] == 2.0, "Metadata.stats.data holds the samples")
    holds(written["stats"]["data"] == [1.0, 2.0, 3.0], "stats.data is written as it is")
    holds(written["stats"]["iterations"] == 3, "iterations are written")
    holds(entry.has_error is False, "has_error is the fixture's")


def test_the_session_keeps_entries_and_saves_them_through_its_storage() -> None:
    source = inspect.getsource(session.BenchmarkSession)
    for name in (
        "benchmarks",
        "disabled",
        "storage",
        "verbose",
        "compare",
        "compare_fail",
        "histogram",
    ):
        holds(f"self.{name}" in source, f"BenchmarkSession.{name} is gone")
    holds(hasattr(session.BenchmarkSession, "groups"), "BenchmarkSession.groups is what it shows")
    saving = inspect.getsource(session.BenchmarkSession.handle_saving)
    holds("self.storage.save(output_json, save)" in saving, "storage.save saves the JSON")
    holds("pytest_benchmark_update_json" in saving, "the hook that names the run is called")


def test_the_file_storage_chooses_a_folder_and_asserts_that_its_file_is_new(
    tmp_path: Path,
) -> None:
    arguments = list(inspect.signature(file.FileStorage.save).parameters)
    holds(arguments == ["self", "output_json", "save"], "FileStorage.save(output_json, save)")
    storage = file.FileStorage(str(tmp_path), SimpleNamespace(info=print), "machine")
    holds(storage.path == tmp_path.resolve(), "FileStorage.path is the folder")
    holds(storage.get("x") == tmp_path.resolve() / "machine" / "x", "get() leads below it")
    storage.save({"benchmarks": []}, "name")
    holds((tmp_path / "machine" / "0001_name.json").exists(), "a run is NNNN_NAME.json")


def test_the_fixture_has_a_group_and_a_mode() -> None:
    source = inspect.getsource(fixture.BenchmarkFixture)
    for name in ("self._mode", "self.group"):
        holds(name in source, f"BenchmarkFixture has no {name}")
    holds("not self._mode" in inspect.getsource(fixture.BenchmarkFixture._cleanup),
          "_cleanup warns of a fixture without a mode")  # fmt: skip


def test_plain_values_are_dumped() -> None:
    holds(
        utils.safe_dumps({"a": 1}, ensure_ascii=True, indent=4) == '{\n    "a": 1\n}', "safe_dumps"
    )


def test_the_session_is_on_the_config(pytestconfig: pytest.Config) -> None:
    found = getattr(pytestconfig, "_benchmarksession", None)
    holds(isinstance(found, session.BenchmarkSession), "config._benchmarksession is the session")
