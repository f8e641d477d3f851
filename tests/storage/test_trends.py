"""Trends: which results belong together, what they are called, and the run that is not saved."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_amp.results.trend import METRICS
from pytest_amp.results.values import Setting
from pytest_amp.storage import trends
from pytest_amp.storage.key import key
from tests.helpers.saved_runs import ENVIRONMENT, SETTINGS, document, report, save

THIS = {"id": "f" * 32, "started": "2026-02-01T12:00:00+00:00", "commit": "d" * 40,
        "branch": "topic", "dirty": True, "command": "pytest"}  # fmt: skip


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    for day in (1, 2, 3):
        save(tmp_path, day, document(report(day=day)))
    return tmp_path


def test_results_of_one_key_are_one_trend(stored: Path) -> None:
    (trend,) = trends.of_storage(stored).values()
    assert trend.name == "test_it.py::test_step on NVIDIA H100 in bfloat16"
    assert [point.run for point in trend.points] == ["0001", "0002", "0003"]
    assert [point.started for point in trend.points] == ["2026-01-01", "2026-01-02", "2026-01-03"]
    assert trend.points[0].torch == "2.13.0"
    assert trend.points[0].values == {
        "speedup": 2.0, "fp32_step_s": 0.01, "amp_step_s": 0.005, "amp_peak_bytes": 600.0,
        "amp_loss": 1.0, "speedup_low": 1.98, "speedup_high": 2.02,
    }  # fmt: skip


def test_settings_are_named_where_they_alone_tell_two_apart(stored: Path) -> None:
    more = {**SETTINGS, "steps": Setting(50, "cli")}
    save(stored, 4, document(report(day=4, settings=more), report("test_it.py::test_b", day=4)))
    assert sorted(trend.name for trend in trends.of_storage(stored).values()) == [
        "test_it.py::test_b on NVIDIA H100 in bfloat16",
        "test_it.py::test_step on NVIDIA H100 in bfloat16 (steps=20, warmup=3, seed=0)",
        "test_it.py::test_step on NVIDIA H100 in bfloat16 (steps=50, warmup=3, seed=0)",
    ]


@pytest.mark.parametrize("nodeid", ["t.py::a[one\ntwo]", 't.py::a["]', "t.py::a[null, 3]"])
def test_any_name_stays_whole(tmp_path: Path, nodeid: str) -> None:
    save(tmp_path, 1, document(report(nodeid)))
    (trend,) = trends.of_storage(tmp_path).values()
    assert trend.name.startswith(nodeid)


def test_a_run_that_is_not_saved_stands_behind_those_that_are(stored: Path) -> None:
    now = report(day=9, speedup=1.5)
    found = trends.of_storage(stored, [now, report("test_it.py::test_new", day=9)], THIS)
    (old, speedup), (new,) = (
        [(point.run, point.values["speedup"]) for point in trend.points][-2:]
        for trend in found.values()
    )
    assert old == ("0003", 2.0)
    assert speedup == ("this run", 1.5)
    assert new == ("this run", 2.0)
    assert len(found[key(now.to_dict())].points) == 4


def test_a_run_that_is_saved_is_there_once(stored: Path) -> None:
    save(stored, 4, document(report(day=9), run_id=THIS["id"]))  # type: ignore[arg-type]
    (trend,) = trends.of_storage(stored, [report(day=9)], THIS).values()
    assert [point.run for point in trend.points] == ["0001", "0002", "0003", "0004"]


@pytest.mark.parametrize("saved", [True, False])
def test_what_was_not_timed_is_no_point(stored: Path, saved: bool) -> None:
    untimed = replace(report(day=9), speedup=None)
    storage = stored if saved else stored / "none"
    assert len(trends.of_storage(storage, [untimed], THIS)) == saved


def test_stored_results_without_some_numbers_stand_beside_a_new_one(stored: Path) -> None:
    save(stored, 4, document(replace(report(day=4), speedup=None, noise_floor=None)))
    (trend,) = trends.of_storage(stored, [report(day=9)], THIS).values()
    assert [point.run for point in trend.points][-2:] == ["0004", "this run"]
    assert len(trend.known("speedup")) == 4


def test_a_first_run_is_a_trend_of_one(tmp_path: Path) -> None:
    (trend,) = trends.of_storage(tmp_path / "none", [report()], THIS).values()
    assert [point.run for point in trend.points] == ["this run"]


def test_a_step_knows_its_place_among_runs_without_the_figure(tmp_path: Path) -> None:
    newer = replace(ENVIRONMENT, torch="2.14.0", flags={"cudnn.benchmark": True})
    for day in range(1, 25):
        now = report(speedup=2.0 + day % 3 / 100, day=day)
        if day in (12, 13):
            now = replace(now, speedup=None)
        elif day > 13:
            now = report(speedup=1.6 + day % 3 / 100, day=day, environment=newer)
        save(tmp_path, day, document(now))
    (trend,) = trends.of_storage(tmp_path).values()
    (step,) = trend.steps["speedup"]
    assert step.place == 13
    assert step.change == "-20%"
    assert step.with_it == ("torch 2.13.0 -> 2.14.0", "cudnn.benchmark False -> True")
    assert math.isnan(trend.points[12].values["speedup"])
    assert 12 not in trend.known("speedup")
    assert trend.steps_in_words(METRICS[0]) == [
        f"run 0014 of 2026-01-14: 2.01x -> 1.61x (-20%), with {', '.join(step.with_it)}"
    ]


def with_recipes(reference: str, candidate: str, **settings: object):
    plain = report()
    arms = {
        name: replace(arm, recipe=recipe)
        for (name, arm), recipe in zip(plain.arms.items(), (reference, candidate), strict=True)
    }
    given = {name: Setting(value, "cli") for name, value in settings.items()}
    return replace(plain, arms=arms, settings={**SETTINGS, **given})


def test_recipes_and_a_loss_scale_of_ones_own_are_named(tmp_path: Path) -> None:
    save(tmp_path, 1, document(report()))
    save(tmp_path, 2, document(with_recipes("bf16", "fp8+compile")))
    scaled = with_recipes("fp32", "bf16", init_scale=1024.0, growth_interval=2000)
    save(tmp_path, 3, document(scaled))
    save(tmp_path, 4, document(with_recipes("bf16", "fp8+compile", seed=1)))
    on = "test_it.py::test_step on NVIDIA H100 in"
    assert sorted(trend.name for trend in trends.of_storage(tmp_path).values()) == [
        f"{on} bf16 (init_scale=1024) against fp32",
        f"{on} bfloat16",
        f"{on} fp8+compile against bf16 (steps=20, warmup=3, seed=0)",
        f"{on} fp8+compile against bf16 (steps=20, warmup=3, seed=1)",
    ]
