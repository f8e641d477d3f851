"""The study of a tuning: nothing is tried twice, and what was tried is never lost."""

from __future__ import annotations

import pytest

from pytest_amp import AmpError
from pytest_amp.experiment.search_space import space_of
from pytest_amp.experiment.study import Outcome, Study
from pytest_amp.settings.precision import Abilities

pytestmark = pytest.mark.needs("optuna")

IDENTITY = {"test": "test_it.py::test_step", "device": "a CPU", "reference": "fp32"}
SMALL = {"recipe": ["bf16", "fp16"], "compile": ["no"], "growth_interval": ["100"],
         "init_scale": ["1024", "64"]}  # fmt: skip


def small(**only):
    return space_of(Abilities("a CPU"), "cpu", {**SMALL, **only}, "bf16")


def study(storage=None, **identity):
    return Study(storage, None, {**IDENTITY, **identity}, 0)


def tried(study, space, outcome=None):
    """Try all that is left; the choices, in order."""
    found = []
    while (proposed := study.propose(space)) is not None:
        found.append(dict(proposed.choice))
        study.finish(proposed, outcome or Outcome("pass", step_s=float(len(found))))
    return found


def test_everything_is_tried_once_and_then_nothing_is_left() -> None:
    space = small(channels_last=["no", "yes"])
    found = tried(study(), space)
    assert sorted(map(str, found)) == sorted(map(str, space.choices()))
    assert len(found) == 6


def test_the_fastest_that_passed_is_the_best() -> None:
    kept, space = study(), small()
    outcomes = [Outcome("pass", step_s=2.0), Outcome("fail", "loss_diff", step_s=None),
                Outcome("pass", step_s=1.5)]  # fmt: skip
    for outcome in outcomes:
        kept.finish(kept.propose(space), outcome)
    assert [trial.outcome.verdict for trial in kept.trials] == ["pass", "fail", "pass"]
    assert kept.best.step_s == 1.5
    assert kept.best.number == kept.trials[2].number


def test_no_trial_passed_is_no_best() -> None:
    kept = study()
    assert kept.best is None
    tried(kept, small(), Outcome("error", "RuntimeError: no kernel"))
    assert kept.best is None


@pytest.mark.parametrize("where", ["journal.log", "sqlite:///{}/tune.db"])
def test_a_stored_study_goes_on_where_it_was(tmp_path, monkeypatch, where: str) -> None:
    monkeypatch.chdir(tmp_path)
    storage, space = where.format(tmp_path), small(channels_last=["no", "yes"])
    first = study(storage)
    for _ in range(3):
        first.finish(first.propose(space), Outcome("pass", step_s=1.0, reference_s=2.0))
    begun = first.propose(space)  # and the process is killed
    second = study(storage)
    assert [trial.choice for trial in second.trials] == [trial.choice for trial in first.trials]
    rest = tried(second, space)
    assert begun.choice in rest
    assert len(rest) == 3
    assert second.reference_s(rest[0]) == 2.0


def test_a_study_of_something_else_is_refused(tmp_path) -> None:
    storage = str(tmp_path / "journal.log")
    Study(storage, "mine", IDENTITY, 0)
    Study(storage, "mine", IDENTITY, 0)
    with pytest.raises(AmpError, match="'mine' is of another device: a CPU, not H100; begin"):
        Study(storage, "mine", {**IDENTITY, "device": "H100"}, 0)
    Study(storage, None, {**IDENTITY, "device": "H100"}, 0)  # whose name differs


def test_a_study_that_was_begun_with_other_values_is_refused(tmp_path) -> None:
    storage = str(tmp_path / "journal.log")
    kept = study(storage)
    kept.finish(kept.propose(small()), Outcome("pass", step_s=1.0))
    again = study(storage)
    with pytest.raises(AmpError, match="begun with other values for recipe than bf16, fp32"):
        again.propose(small(recipe=["bf16", "fp32"]))
    assert len(again.trials) == 1


def test_a_storage_that_can_t_be_opened_is_named(tmp_path) -> None:
    with pytest.raises(AmpError, match=r"--storage nosuch://x: .*sqlite:///tune.db"):
        study("nosuch://x")
    with pytest.raises(AmpError, match=r"--storage .*missing"):
        study(str(tmp_path / "missing" / "journal.log"))


def test_what_setups_offered_is_known_to_the_next_run(tmp_path) -> None:
    storage = str(tmp_path / "journal.log")
    kept, space = study(storage), small().offering("batch_size", (8, 16))
    kept.keep_offers(space)
    kept.finish(kept.propose(space), Outcome("pass", step_s=1.0, reference_s=3.0))
    again = study(storage)
    assert {name: [*values] for name, values in again.offered.items()} == {"batch_size": [8, 16]}
    [trial] = again.trials
    other = {**trial.choice, "batch_size": 24 - trial.choice["batch_size"]}
    assert again.reference_s(trial.choice) == 3.0
    assert again.reference_s(other) is None
