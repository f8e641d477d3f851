"""Which stored result is taken, and what is said where none is."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_amp.judge.comparison import without_baseline
from pytest_amp.render import json as json_report
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import Setting
from pytest_amp.storage import store
from pytest_amp.storage.baseline import Baselines, NoBaseline
from pytest_amp.storage.index import Index
from tests.helpers.saved_runs import ENVIRONMENT, MACHINE, SETTINGS, document, report, save

NOW = report(day=31)


def taken(root: Path, reference: str = "newest", now: AmpReport = NOW, **more: object) -> str:
    """The run that is taken, by name."""
    with closing(Baselines(root, reference, **more)) as baselines:  # type: ignore[arg-type]
        return baselines.of(now)[1].run


def why_none(root: Path, reference: str = "newest", now: AmpReport = NOW, **more: object) -> str:
    with pytest.raises(NoBaseline) as caught:
        taken(root, reference, now, **more)
    return str(caught.value)


def test_the_newest_passing_result_is_taken_and_never_a_failed_one(tmp_path: Path) -> None:
    save(tmp_path, 1, document(report(day=1)))
    save(tmp_path, 2, document(report(day=2)))
    for number, verdict in ((3, "fail"), (4, "inconclusive"), (5, "error")):
        save(tmp_path, number, document(report(day=number, verdict=verdict)))
    assert taken(tmp_path) == "0002"
    with closing(Baselines(tmp_path)) as baselines:
        stored, origin = baselines.of(NOW)
    assert stored.started == origin.started == "2026-01-02T12:00:00+00:00"
    assert (origin.commit, origin.branch) == ("c" * 40, "main")


def test_of_a_branch_or_with_the_same_versions_alone(tmp_path: Path) -> None:
    newer = replace(ENVIRONMENT, torch="2.14.0")
    save(tmp_path, 1, document(report(day=1)))
    save(tmp_path, 2, document(report(day=2), branch="topic"))
    save(tmp_path, 3, document(report(day=3, environment=newer)))
    assert taken(tmp_path) == "0003"
    assert taken(tmp_path, exact=True) == "0002"
    assert taken(tmp_path, branch="main", exact=True) == "0001"
    assert "of branch other with these versions" in why_none(tmp_path, branch="other", exact=True)


def test_an_unreadable_run_is_told_and_the_next_is_taken(tmp_path: Path) -> None:
    save(tmp_path, 1, document(report(day=1)))
    broken = save(tmp_path, 2, '{"benchmarks": [')
    content = document(report(day=3))
    for entry in content["benchmarks"]:
        entry["extra_info"]["amp"] = {**entry["extra_info"]["amp"], "notes": 3}
    save(tmp_path, 3, content)
    with closing(Baselines(tmp_path)) as baselines:
        assert baselines.of(NOW)[1].run == "0001"
        assert [str(broken) in text for text in baselines.warnings] == [True, False]
        baselines.of(NOW)
        assert len(baselines.warnings) == 2  # each is told once


@pytest.mark.parametrize("reference", ["2", "0002"])
def test_a_run_is_meant_by_its_number(tmp_path: Path, reference: str) -> None:
    for number in (1, 2, 3):
        save(tmp_path, number, document(report(day=number)))
    assert taken(tmp_path, reference) == "0002"
    assert why_none(tmp_path, "7") == "there is no saved run '7'"


def test_a_run_beyond_9999_is_found_by_its_number(tmp_path: Path) -> None:
    save(tmp_path, 12345, document(report()))
    assert taken(tmp_path, "12345") == "12345"


@pytest.mark.parametrize("reference", ["{}/{}/0001_run.json", "{}", "{}/**/*.json", "{}/*"])
def test_runs_are_meant_by_file_folder_or_glob(tmp_path: Path, reference: str) -> None:
    save(tmp_path, 1, document(report(day=1)))
    assert taken(tmp_path / "elsewhere", reference.format(tmp_path, MACHINE)) == "0001"


def test_json_reports_are_baselines_too_the_newest_of_several(tmp_path: Path) -> None:
    for day in (3, 9, 5):
        content = json_report.document([report(day=day)], {"branch": "main"}, "", "0.1.0")
        json_report.write(tmp_path / f"artifact-{day}" / "amp.json", content)
    stored, origin = Baselines(tmp_path / "none", str(tmp_path)).of(NOW)
    assert stored.started.startswith("2026-01-09")
    assert origin.file.endswith("artifact-9/amp.json")


@pytest.mark.parametrize(
    ("stored", "why"),
    [
        (report(verdict="fail"), "its newest, in run 0001, did not pass (fail)"),
        (
            report(environment=replace(ENVIRONMENT, device="A100")),
            "has device A100, not NVIDIA H100",
        ),
        (report("test_it.py::test_other"), "there is no passing result of this test on NVIDIA"),
    ],
)
def test_a_run_that_is_meant_and_does_not_fit_is_told(
    tmp_path: Path, stored: AmpReport, why: str
) -> None:
    save(tmp_path, 1, document(stored))
    assert why in why_none(tmp_path, "1")


def test_other_reasons_are_told(tmp_path: Path) -> None:
    save(tmp_path, 1, document(report(environment=replace(ENVIRONMENT, torch="2.12.0"))))
    assert "different environment (torch 2.12.0 -> 2.13.0)" in why_none(tmp_path, "1", exact=True)
    assert "is of branch main" in why_none(tmp_path, "1", branch="topic")
    (tmp_path / "empty").mkdir()
    assert why_none(tmp_path, str(tmp_path / "empty")).endswith("write --amp-compare=newest")


def test_an_empty_storage_and_one_that_is_a_file_are_told(tmp_path: Path) -> None:
    assert why_none(tmp_path / "none").startswith(
        "there is no passing result of this test on NVIDIA H100 in bfloat16 in "
    )
    (tmp_path / "file").write_text("")
    assert why_none(tmp_path / "file").endswith("is a file, not a storage")


@pytest.mark.parametrize("nodeid", ["<script>", "a\nb", "../../x", "x" * 5000, "\U0001f525"])
def test_any_name_is_compared_with_itself(tmp_path: Path, nodeid: str) -> None:
    save(tmp_path, 1, document(report(nodeid), report("other")))
    assert taken(tmp_path, now=report(nodeid)) == "0001"
    assert sorted(each.name for each in tmp_path.iterdir()) == [".amp-index.sqlite", MACHINE]


def test_a_session_looks_at_the_storage_once_and_reads_a_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = [report(f"test_it.py::test_{number}") for number in range(5)]
    save(tmp_path, 1, document(*tests))
    with Index(tmp_path):  # so that the files are known
        pass
    listed, read = store.files, store.read
    seen: list[Path] = []
    monkeypatch.setattr(
        store, "files", lambda root, problems: (seen.append(root), listed(root, problems))[1]
    )
    monkeypatch.setattr(store, "read", lambda path: (seen.append(path), read(path))[1])
    with closing(Baselines(tmp_path)) as baselines:
        assert [baselines.of(each)[1].run for each in tests] == ["0001"] * 5
    assert seen == [tmp_path, tmp_path / MACHINE / "0001_run.json"]


def test_an_untimed_result_does_not_stand_before_a_timed_one(tmp_path: Path) -> None:
    save(tmp_path, 1, document(report(day=1)))
    save(tmp_path, 2, document(replace(report(day=2), speedup=None)))
    brief = replace(report().speedup, low=None, high=None)  # type: ignore[type-var]
    save(tmp_path, 3, document(replace(report(day=3), speedup=brief)))
    assert taken(tmp_path) == "0001"
    assert taken(tmp_path, now=replace(NOW, speedup=None)) == "0003"
    assert why_none(tmp_path, "3").endswith("in run 0003, was timed too briefly (3 pairs)")


def test_what_failed_for_want_of_an_answer_is_no_baseline(tmp_path: Path) -> None:
    strict = {**SETTINGS, "strict": Setting(["baseline"], "cli")}
    began = without_baseline(report(settings=strict), "the storage is empty", {"speedup": 0.1})
    assert began.verdict == "pass"
    save(tmp_path, 1, document(began))
    assert why_none(tmp_path).endswith(
        "in run 0001, failed under --amp-strict, without compare:speedup: save a first one "
        "without it"
    )
    save(tmp_path, 2, document(report(day=2)))
    assert taken(tmp_path) == "0002"


def test_a_file_that_changed_behind_the_index_is_judged_as_it_is(tmp_path: Path) -> None:
    save(tmp_path, 1, document(report(day=1)))
    path = save(tmp_path, 2, document(report(day=2)))
    assert taken(tmp_path) == "0002"
    stamp = path.stat()
    path.write_text(path.read_text().replace('"verdict": "pass"', '"verdict": "fail"'))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert taken(tmp_path) == "0001"


@pytest.mark.parametrize("reference", ["newest", "{}/*/*.json"])
def test_which_is_newer_is_a_matter_of_time_not_of_text(tmp_path: Path, reference: str) -> None:
    def began(number: int, started: str) -> None:
        save(tmp_path, number, document(replace(report(), started=started)))

    began(1, "2026-01-05T01:00:00+09:00")  # on the 4th, 16:00
    began(2, "2026-01-04T20:00:00+00:00")
    assert taken(tmp_path, reference.format(tmp_path)) == "0002"
    began(3, "2026-01-04T21:00:00")  # without a zone it is UTC
    assert taken(tmp_path, reference.format(tmp_path)) == "0003"
    began(9999, "2026-01-04T21:00:00+00:00")
    began(10000, "2026-01-04T21:00:00+00:00")
    assert taken(tmp_path, reference.format(tmp_path)) == "10000"


def test_a_run_of_the_future_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 2, document(replace(report(), started="2099-01-01T00:00:00+00:00")))
    assert why_none(tmp_path).endswith("is dated 2099-01-01, which is in the future")
    save(tmp_path, 1, document(report(day=1)))
    assert taken(tmp_path) == "0001"
    assert taken(tmp_path, "2") == "0002"  # as somebody asked for it


def test_another_rank_is_another_result(tmp_path: Path) -> None:
    save(tmp_path, 1, document(report(rank=1)))
    assert why_none(tmp_path).endswith("in run 0001, has rank 1, not 0")
    assert taken(tmp_path, now=replace(NOW, rank=1)) == "0001"


def test_with_the_same_versions_alone_one_run_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = replace(ENVIRONMENT, torch="2.14.0")
    for day in range(1, 9):
        save(
            tmp_path, day, document(report(day=day, environment=newer if day > 1 else ENVIRONMENT))
        )
    with Index(tmp_path):
        pass
    read, seen = store.read, []
    monkeypatch.setattr(store, "read", lambda path: (seen.append(path.name), read(path))[1])
    assert taken(tmp_path, exact=True) == "0001"
    assert seen == ["0001_run.json"]


def test_a_number_is_a_run_before_it_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "7").mkdir()
    assert why_none(tmp_path / "store", "7").startswith("there is no saved run '7'")
    save(tmp_path / "store", 7, document(report()))
    assert taken(tmp_path / "store", "7") == "0007"


def test_a_folder_s_own_name_is_no_pattern(tmp_path: Path) -> None:
    here = tmp_path / "b[1]"
    save(here, 1, document(report()))
    assert taken(tmp_path / "none", "*/*.json", beside=here) == "0001"


def test_where_no_speedup_is_gated_none_is_needed(tmp_path: Path) -> None:
    save(tmp_path, 1, document(replace(report(), speedup=None)))
    assert why_none(tmp_path).endswith("in run 0001, was not timed")
    assert taken(tmp_path, timed=False) == "0001"
