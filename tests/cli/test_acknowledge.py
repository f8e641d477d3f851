"""pytest-amp compare --acknowledge: a change is accepted with a reason, and no further."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_amp.cli import main as cli
from pytest_amp.results.report import AmpReport
from tests.helpers.saved_runs import document, report, save

Captured = pytest.CaptureFixture[str]
GATED = "--fail=speedup:10%,memory:5%,loss:5%"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run 1, and runs that are slower, larger or worse; the current folder is empty."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    save(tmp_path, 1, document(report(day=1), report("test_it.py::test_other", day=1)))
    for number, given in enumerate(
        (
            {"speedup": 1.5},
            {"speedup": 1.48},
            {"speedup": 1.2},
            {"peaks": (1000, 700)},
            {"loss": 1.5},
        ),
        2,
    ):
        both = (report(day=number, **given), report("test_it.py::test_other", day=number))
        save(tmp_path, number, document(*both))
    return tmp_path


def compare(runs: Path, *arguments: str) -> int:
    return cli.main(["compare", *arguments, f"--storage={runs}"])


def accepted() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(Path("amp-acknowledged.json").read_text("utf-8"))
    return found


def test_what_is_accepted_passes_with_its_reason_and_what_goes_further_fails(
    runs: Path, capsys: Captured
) -> None:
    assert compare(runs, "1", "2", GATED) == 1
    assert compare(runs, "1", "2", GATED, "--acknowledge", "a larger vocabulary") == 0
    assert ": speedup of test_it.py::test_step" in capsys.readouterr().err
    assert compare(runs, "1", "2", GATED) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "is beyond the 10% allowed" in told
    assert "accepted (a larger vocabulary), and since then 0% " in told
    assert compare(runs, "1", "3", GATED) == 0  # 1.3% below what was accepted
    capsys.readouterr()
    assert compare(runs, "1", "4", GATED) == 1  # 20% below it
    assert "since then -20%" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("run", "metric"), [("2", "speedup"), ("5", "memory"), ("6", "loss")])
def test_each_metric_can_be_accepted_and_covers_no_other(runs: Path, run: str, metric: str) -> None:
    assert compare(runs, "1", run, GATED, "--acknowledge", "so be it") == 0
    assert [each["metric"] for each in accepted()] == [metric]
    for other in ("2", "5", "6"):
        assert compare(runs, "1", other, GATED) == (0 if other == run else 1)


def test_a_newer_word_replaces_an_older_one(runs: Path) -> None:
    for run, reason in (("2", "first"), ("4", "second")):
        assert compare(runs, "1", run, GATED, "--acknowledge", reason) == 0
    (only,) = accepted()
    assert only["reason"] == "second"
    assert compare(runs, "1", "4", GATED) == 0


def test_a_baseline_that_is_newer_than_the_word_s_end_is_the_measure_again(runs: Path) -> None:
    assert compare(runs, "1", "4", GATED, "--acknowledge", "so be it") == 0
    assert compare(runs, "1", "4", GATED) == 0
    (entry,) = accepted()
    assert entry["until"] > "2026-02"  # two weeks from now
    rewrite(until="2026-01-01T11:00:00+00:00")  # an hour before the baseline
    assert compare(runs, "1", "4", GATED) == 1


def rewrite(**changes: object) -> None:
    """Write the file's only entry with other values."""
    (entry,) = accepted()
    Path("amp-acknowledged.json").write_text(json.dumps([{**entry, **changes}]), "utf-8")


def test_another_device_is_not_covered(runs: Path) -> None:
    assert compare(runs, "1", "2", GATED, "--acknowledge", "so be it") == 0
    text = Path("amp-acknowledged.json").read_text("utf-8")
    Path("amp-acknowledged.json").write_text(text.replace("H100", "L4"), "utf-8")
    assert compare(runs, "1", "2", GATED) == 1


def test_tests_that_are_gone_or_skipped_are_accepted_if_that_is_asked_for(
    runs: Path, capsys: Captured
) -> None:
    save(runs, 20, document(report(day=20)))
    skipped = report(
        "test_it.py::test_other", verdict="skipped", arms={}, skip_reason="slow", day=21
    )
    save(runs, 21, document(report(day=21), skipped))
    for run in ("20", "21"):
        assert compare(runs, "1", run, GATED) == 3
        assert compare(runs, "1", run, GATED, "--acknowledge", "moved") == 2
        assert "--acknowledge-tests accepts tests that are gone" in capsys.readouterr().err
        accept = ("--acknowledge", "moved", "--acknowledge-tests")
        assert compare(runs, "1", run, GATED, *accept) == 0
        assert [(each["test"], each["metric"]) for each in accepted()] == [
            ("test_it.py::test_other", "missing")
        ]
        assert compare(runs, "1", run, GATED) == 0
        rewrite(until="2026-01-01T11:00:00+00:00")
        assert compare(runs, "1", run, GATED) == 3
        Path("amp-acknowledged.json").unlink()


def test_a_new_test_is_accepted_too(runs: Path) -> None:
    both = (report(day=22), report("test_it.py::test_other", day=22))
    save(runs, 22, document(*both, report("test_it.py::test_new", day=22)))
    assert compare(runs, "1", "22", GATED) == 4
    assert compare(runs, "1", "22", GATED, "--acknowledge", "new", "--acknowledge-tests") == 0
    assert [(each["test"], each["metric"]) for each in accepted()] == [
        ("test_it.py::test_new", "new")
    ]
    assert compare(runs, "1", "22", GATED) == 0


def test_of_several_losses_the_one_that_got_worse_is_accepted_and_no_other_may_vanish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(day: int, **losses: float) -> AmpReport:
        made = report(day=day)
        curves = {name: (2.0, value) for name, value in losses.items()}
        arms = {name: replace(arm, losses_by_key=curves) for name, arm in made.arms.items()}
        return replace(made, arms=arms)

    monkeypatch.chdir(tmp_path)
    results = (
        {"loss": 1.0, "aux": 1.0}, {"loss": 1.5, "aux": 0.5}, {"loss": 1.5, "aux": 0.9},
        {"loss": 1.5}, {"loss": 1.5, "aux": 1.2},
    )  # fmt: skip
    for number, losses in enumerate(results, 1):
        save(tmp_path, number, document(trained(number, **losses)))
    assert compare(tmp_path, "1", "2", GATED, "--acknowledge", "so be it") == 0
    assert set(accepted()[0]["figures"]) == {"loss"}
    assert compare(tmp_path, "1", "2", GATED) == 0
    assert compare(tmp_path, "1", "3", GATED) == 0  # better than the baseline still
    assert compare(tmp_path, "1", "4", GATED) == 1  # a loss is gone
    assert compare(tmp_path, "1", "5", GATED) == 1


@pytest.mark.parametrize(
    ("metric", "figures"),
    [
        ("speedup", {"value": float("nan"), "low": float("nan"), "high": float("nan")}),
        ("speedup", {"value": 0.0, "low": 0.0, "high": 0.0}),
        ("speedup", {"value": 1.5, "low": 1.6, "high": 1.7}),
        ("speedup", {}),
        ("memory", {"peak_bytes": 1e999}),
        ("memory", {"peak_bytes": 0}),
        ("loss", {}),
        ("loss", {"loss": float("nan")}),
        ("missing", {"loss": 1.0}),
    ],
)
def test_figures_that_would_let_anything_pass_are_refused(
    runs: Path, capsys: Captured, metric: str, figures: dict[str, float]
) -> None:
    assert compare(runs, "1", "2", GATED, "--acknowledge", "so be it") == 0
    rewrite(metric=metric, figures=figures)
    assert compare(runs, "1", "4", GATED) == 2
    assert "amp-acknowledged.json is not a list of what was accepted: [0]: " in " ".join(
        capsys.readouterr().err.split()
    )


def test_json_stays_json(runs: Path, capsys: Captured) -> None:
    assert compare(runs, "1", "2", GATED, "--acknowledge", "so be it", "--json") == 0
    said = capsys.readouterr()
    assert len(json.loads(said.out)) == 2
    assert "accepted until " in said.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("1", "2", "--acknowledge", "why"), "--acknowledge needs limits that are exceeded"),
        (("1", "2", GATED, "--acknowledge", "  "), "--acknowledge needs a reason"),
        (("1", "2", GATED, "--acknowledge-tests"), "--acknowledge-tests needs a reason"),
        (("1", "1", GATED, "--acknowledge", "why"), "nothing is beyond its limit"),
    ],
    ids=["no limit", "no reason", "tests without a reason", "no change"],
)
def test_there_has_to_be_something_to_accept_and_a_reason(
    runs: Path, capsys: Captured, arguments: tuple[str, ...], said: str
) -> None:
    assert compare(runs, *arguments) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not Path("amp-acknowledged.json").exists()


def test_a_loss_that_is_not_finite_is_not_accepted(runs: Path, capsys: Captured) -> None:
    save(runs, 30, document(report(day=30, loss=float("nan"))))
    assert compare(runs, "1", "30", GATED, "--acknowledge", "why") == 1
    assert "its loss can't be accepted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "is not a list of what was accepted"),
        ("{}", "is not a list"),
        ('[{"test": "a"}]', "[0].metric is missing"),
        ('[{"test": "a", "metric": "speed"}]', "[0].metric is none of"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(
    runs: Path, capsys: Captured, text: str, said: str
) -> None:
    Path("amp-acknowledged.json").write_text(text, "utf-8")
    assert compare(runs, "1", "2", GATED) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "amp-acknowledged.json" in told
    assert said in told


def test_a_hostile_id_or_reason_stays_text(runs: Path, capsys: Captured) -> None:
    nodeid = "test_it.py::test[\x1b[31m\u202e</x>\n\ud800]"
    save(runs, 40, document(report(nodeid, day=1)))
    save(runs, 41, document(report(nodeid, day=2, speedup=1.2)))
    assert compare(runs, "40", "41", GATED, "--acknowledge", "why\x1b[31m\n\u202e") == 0
    assert compare(runs, "40", "41", GATED) == 0
    told = "".join(capsys.readouterr())
    assert "\x1b" not in told
    assert "\u202e" not in told
