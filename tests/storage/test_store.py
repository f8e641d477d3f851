"""Files of a storage, read back, whatever is in them."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_amp.render import json as json_report
from pytest_amp.results.report import AmpReport
from pytest_amp.storage import store
from pytest_amp.storage.key import key
from pytest_amp.storage.store import Broken, SavedRun
from tests.helpers.saved_runs import ENVIRONMENT, document, report, save

NASTY = [
    "<script>alert(1)</script>", "two\nlines", "../../etc/passwd", "x" * 5000, "test_\U0001f525",
    "\x1b[31mred", "a\u202eb", "",
]  # fmt: skip


def result(run: SavedRun, nodeid: str = "test_it.py::test_step") -> AmpReport:
    """The report of that test in the run."""
    return run.report(key(report(nodeid).to_dict()))


def nodeids(run: SavedRun) -> list[str]:
    return [each["nodeid"] for each in run.tests.values()]


def test_a_run_of_pytest_benchmarks_is_read_with_its_reports(tmp_path: Path) -> None:
    path = save(tmp_path, 12, document(report(), report("test_it.py::test_other", speedup=3.0)))
    run = store.read(path)
    assert (run.name, run.number, run.id) == ("0012", 12, "a" * 32)
    assert (run.commit, run.branch, run.dirty) == ("c" * 40, "main", False)
    assert nodeids(run) == ["test_it.py::test_step", "test_it.py::test_other"]
    assert result(run).to_dict() == report().to_dict()
    assert run.damaged == ()


def test_a_json_report_is_read_like_a_saved_run(tmp_path: Path) -> None:
    content = json_report.document(
        [report(attempt=1, verdict="fail"), report(attempt=2)],
        {"id": "b" * 32, "branch": "main"}, "2026-01-01T12:00:00+00:00", "0.1.0",
    )  # fmt: skip
    json_report.write(tmp_path / "amp.json", content)
    run = store.read(tmp_path / "amp.json")
    assert (run.name, run.number, run.branch) == ("amp.json", None, "main")
    assert result(run).attempt == 2


def test_runs_that_are_not_ours_have_no_tests(tmp_path: Path) -> None:
    theirs = {"benchmarks": [{"name": "test_x", "extra_info": {}, "stats": {}}], "commit_info": {}}
    assert store.read(save(tmp_path, 1, theirs)).tests == {}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "is not complete JSON"),
        ('{"benchmarks": [', "is not complete JSON"),
        ("[]", "holds a JSON list, not a saved run"),
        ("null", "holds a JSON NoneType"),
        ("{}", "is neither a file of pytest-benchmark's nor one of --amp-json"),
        ('{"benchmarks": 3}', "is neither"),
        ('{"schema": 2, "tests": []}', "is of schema 2, and this pytest-amp reads schema 1"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"a":' * 100_000, "is nested too deeply"),
    ],
)
def test_what_is_no_run_is_told_by_name(tmp_path: Path, content: str, why: str) -> None:
    path = save(tmp_path, 7, content)
    with pytest.raises(Broken) as caught:
        store.read(path)
    assert str(caught.value).startswith(f"{path}: {why}")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    path = tmp_path / "0001_x.json"
    path.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(Broken, match="is not complete JSON"):
        store.read(path)


def test_a_huge_file_is_told_and_not_read(tmp_path: Path) -> None:
    path = tmp_path / "0001_x.json"
    with path.open("wb") as file:
        file.truncate(100 * 2**20)
    with pytest.raises(Broken, match=r"is too large to be a saved run \(100 MiB\)"):
        store.read(path)


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(Broken, match=r"can't be read \(No such file or directory\)"):
        store.read(tmp_path / "0001_x.json")


@pytest.mark.parametrize("amp", [3, [], "x", {"nodeid": 3}, {"nodeid": None}, {}])
def test_a_report_that_names_no_test_is_told_and_the_others_stay(
    tmp_path: Path, amp: object
) -> None:
    content = document(report())
    content["benchmarks"].append({"name": "x", "extra_info": {"amp": amp}})
    run = store.read(save(tmp_path, 1, content))
    assert nodeids(run) == ["test_it.py::test_step"]
    assert len(run.damaged) == 1
    assert "0001_run.json" in run.damaged[0]


@pytest.mark.parametrize("missing", ["settings", "environment"])
def test_a_report_that_can_t_be_told_from_others_is_damaged(tmp_path: Path, missing: str) -> None:
    content = document(report(), report("test_it.py::test_other"))
    content["benchmarks"][0]["extra_info"]["amp"].pop(missing)
    run = store.read(save(tmp_path, 1, content))
    assert nodeids(run) == ["test_it.py::test_other"]
    [said] = run.damaged
    assert said.endswith(f"the report of test_it.py::test_step can't be read (no '{missing}')")


def test_a_test_on_two_devices_is_two_results(tmp_path: Path) -> None:
    other = report(environment=replace(ENVIRONMENT, device="NVIDIA A100"))
    content = json_report.document([report(), other, report(attempt=2)], {}, "", "0.1.0")
    json_report.write(tmp_path / "amp.json", content)
    run = store.read(tmp_path / "amp.json")
    assert [each["environment"]["device"] for each in run.tests.values()] == [
        "NVIDIA H100", "NVIDIA A100",
    ]  # fmt: skip
    assert result(run).attempt == 2


@pytest.mark.parametrize("missing", ["arms", "gates", "verdict"])
def test_a_report_with_something_missing_is_told_where_it_is_used(
    tmp_path: Path, missing: str
) -> None:
    content = document(report())
    for entry in content["benchmarks"]:
        entry["extra_info"]["amp"].pop(missing, None)  # both entries hold one report here
    run = store.read(save(tmp_path, 1, content))
    with pytest.raises(Broken, match=r"the report of test_it\.py::test_step"):
        result(run)
    with pytest.raises(KeyError):
        result(run, "another")


@pytest.mark.parametrize("nodeid", NASTY)
def test_any_name_comes_back_as_it_was_and_is_shown_on_one_line(
    tmp_path: Path, nodeid: str
) -> None:
    run = store.read(save(tmp_path, 1, document(report(nodeid))))
    assert result(run, nodeid).nodeid == nodeid
    shown = store.printable(nodeid)
    assert shown.isprintable()
    assert len(shown) <= 200


def test_not_a_number_in_a_file_is_read(tmp_path: Path) -> None:
    content = json.dumps(document(report())).replace('"coverage": 1.0', '"coverage": NaN')
    run = store.read(save(tmp_path, 1, content))
    coverage = result(run).coverage
    assert coverage is not None
    assert coverage != coverage


def test_files_of_all_machines_are_found_and_those_beside_them(tmp_path: Path) -> None:
    for name in ("a/0001_x.json", "b/0002_x.json", "10000_x.json", "a/notes.txt", "a/.x.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    found = {os.path.relpath(each.path, tmp_path) for each in store.files(tmp_path, [])}
    assert found == {"a/0001_x.json", "b/0002_x.json", "10000_x.json"}


def test_what_is_no_file_in_a_storage_is_passed_over_or_told(tmp_path: Path) -> None:
    save(tmp_path, 1, document(report()))
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "loop.json").symlink_to("loop.json")
    os.mkfifo(tmp_path / "pipe.json")
    problems: list[str] = []
    assert [each.path.name for each in store.files(tmp_path, problems)] == ["0001_run.json"]
    assert len(problems) == 1
    assert "loop.json: can't be read" in problems[0]
    with pytest.raises(Broken, match="is not a file"):
        store.read(tmp_path / "pipe.json")


def test_a_storage_that_is_not_there_is_empty_and_one_that_is_a_file_is_not(
    tmp_path: Path,
) -> None:
    assert list(store.files(tmp_path / "none", [])) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        list(store.files(tmp_path / "file", []))


@pytest.mark.parametrize(
    ("storage", "path"),
    [(".benchmarks", ".benchmarks"), ("file://./x", "x"), ("file:///tmp/x", "/tmp/x")],
)
def test_a_storage_is_given_as_pytest_benchmark_takes_it(storage: str, path: str) -> None:
    assert store.folder(storage) == Path(path)


def test_a_storage_that_is_no_folder_is_refused() -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        store.folder("elasticsearch+http://localhost/index")
