"""A tuning finds the fastest step among those that are safe, on a clock that the steps move."""

from __future__ import annotations

import itertools

import pytest
import torch

from pytest_amp import AmpError
from pytest_amp.experiment.job import Job
from pytest_amp.experiment.search_space import described
from pytest_amp.experiment.tuning import Course, Tuning, Wanted, tune
from pytest_amp.progress import Progress
from pytest_amp.settings.resolved import resolve
from tests.helpers.lab import SimulatedDevice

pytestmark = pytest.mark.needs("optuna")

ONLY = {"compile": ["no"], "init_scale": ["1024"], "growth_interval": ["100"]}


class Told(Course):
    def __init__(self):
        self.trials, self.said, self.space = [], [], None

    def begins(self, tuning, space, device):
        self.space = space

    def tried(self, tuning, trial):
        self.trials.append(trial)

    def says(self, text):
        self.said.append(text)


def tuned(seconds, before=lambda _: None, loss=lambda _: 1.0, wanted=None, only=ONLY, **given):
    """Tune steps that take `seconds(arm)`, run `before(arm)` in setup and return `loss(arm)`."""
    device = SimulatedDevice()

    def setup(arm):
        chosen = before(arm)

        def step():
            device.time_s += seconds(arm) if chosen is None else seconds(arm, chosen)
            return loss(arm)

        return step

    settings = resolve([("cli", {"steps": 4, "max_time": 6, **given})])
    tuning, told = Tuning(), Told()
    job = Job("test_it.py::test_step", setup, device, settings)
    tune(job, Progress(), wanted or Wanted(trials=20, only=only), tuning, told)
    return tuning, told


def takes(**by_recipe):
    """Steps that take so many ms by the recipe's base; 10 ms unless it is named."""
    return lambda arm: by_recipe.get(str(arm.recipe).replace("-", "_"), 10.0) / 1000


def test_the_fastest_recipe_is_found_and_its_time_is_the_step_s() -> None:
    tuning, told = tuned(takes(bf16=6.0, fp16=4.0, bf16_true=8.0))
    assert tuning.best.text == "fp16 init_scale=1024 growth_interval=100"
    assert tuning.best.step_s == pytest.approx(0.004)
    middle, low, high = tuning.best.outcome.speedup
    assert middle == pytest.approx(2.5)
    assert low <= middle <= high
    assert told.said == [
        "  no convolution runs, so channels_last is not tried", "nothing is left to try"
    ]  # fmt: skip
    assert {trial.text.split()[0] for trial in told.trials} == {
        "bf16", "fp32", "fp16", "bf16-true", "fp16-true",
    }  # fmt: skip


def test_the_test_s_own_recipe_comes_first() -> None:
    tuning, _ = tuned(takes(bf16=6.0), candidate="bf16-true")
    assert tuning.trials[0].text == described(tuning.usual) == "bf16-true"


def test_what_is_fast_and_not_safe_is_not_found() -> None:
    def loss(arm):
        return float("nan") if str(arm.recipe) == "fp16" else 1.0

    tuning, _ = tuned(takes(bf16=6.0, fp16=1.0), loss=loss)
    assert tuning.best.text == "bf16"
    [failed] = [trial for trial in tuning.trials if trial.text.startswith("fp16 ")]
    assert failed.outcome.verdict == "fail"
    assert "loss is not finite" in failed.outcome.why
    assert failed.outcome.step_s is None  # it is not timed either


def test_what_raises_is_a_trial_and_the_search_goes_on() -> None:
    def loss(arm):
        if str(arm.recipe) == "fp16-true":
            raise RuntimeError("no kernel for Half\nand more")
        return 1.0

    tuning, _ = tuned(takes(bf16=6.0), loss=loss)
    [raised] = [trial for trial in tuning.trials if trial.outcome.verdict == "error"]
    assert raised.outcome.why == "RuntimeError: no kernel for Half"
    assert tuning.best.text == "bf16"
    assert len(tuning.trials) == 5


def test_what_can_t_be_the_fastest_is_timed_no_longer_than_that_takes_to_show() -> None:
    tuning, _ = tuned(takes(bf16=2.0))
    by_name = {trial.text.split()[0]: trial.outcome for trial in tuning.trials}
    assert by_name["bf16"].verdict == "pass"
    for name in ("fp32", "fp16", "bf16-true", "fp16-true"):
        assert by_name[name].verdict == "pruned"
        assert by_name[name].why.startswith("slower than trial 0, as ")
        assert by_name[name].pairs <= 12
        assert by_name[name].step_s > 0.002


def test_a_machine_that_is_slower_for_a_while_favours_nobody() -> None:
    slow = {"bf16": 3.0, "fp16": 1.0}

    def seconds(arm):
        running["name"] = str(arm.recipe) if arm.name == "amp" else running["name"]
        return takes(bf16=5.0, fp16=8.0)(arm) * slow.get(running["name"], 1.0)

    running = {"name": "fp32"}
    tuning, _ = tuned(seconds, only={**ONLY, "recipe": ["fp16", "bf16"]}, candidate="fp16",
                      init_scale=1024, growth_interval=100)  # fmt: skip
    assert tuning.best.text == "bf16"
    assert tuning.best.step_s == pytest.approx(0.005)  # at the speed of the first trial


def test_steps_that_a_scaler_skips_are_paid_by_the_others() -> None:
    def before(arm):
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([weight], lr=0.0)
        return weight, optimizer

    def seconds(arm, chosen):
        weight, optimizer = chosen
        optimizer.zero_grad()
        loss = (weight * 1.0).sum()
        if arm.scaler.get_scale() > 2.0**14 and arm.scaler.is_enabled():
            loss = loss * float("inf")
        arm.scaler.scale(loss).backward()
        arm.scaler.step(optimizer)
        arm.scaler.update()
        return 0.004 if arm.name == "amp" else 0.008

    tuning, _ = tuned(
        seconds, before, only={**ONLY, "recipe": ["fp16"], "init_scale": ["65536", "1024"]},
        steps=8, candidate="fp16", ignore="AMP", max_loss_diff=None, growth_interval=100,
    )  # fmt: skip
    times = {trial.choice["init_scale"]: trial.outcome for trial in tuning.trials}
    assert times[1024.0].step_s == pytest.approx(0.004)
    # two of eight steps are skipped until the scale is 2^14
    slower = times[65536.0]
    assert slower.verdict == "pruned" or slower.step_s == pytest.approx(0.004 * 8 / 6)
    assert tuning.best.choice["init_scale"] == 1024.0


def test_batch_sizes_are_compared_by_the_time_per_example() -> None:
    def before(arm):
        return (arm.suggest("batch_size", (8, 16, 32)),)

    def seconds(arm, chosen):
        per_example = {8: 1.0, 16: 0.4, 32: 0.6}[chosen[0]]
        return per_example * chosen[0] / 1000 / (2 if arm.name == "amp" else 1)

    tuning, told = tuned(seconds, before, only={**ONLY, "recipe": ["bf16"]})
    assert tuning.best.choice["batch_size"] == 16
    assert tuning.best.step_s == pytest.approx(0.0002)
    assert tuning.usual["batch_size"] == 8
    assert told.trials[0].choice["batch_size"] == 8  # as it is without a tuning
    assert told.space.tried["batch_size"] == (8, 16, 32)


def test_both_arms_and_all_builds_of_a_trial_get_the_same_value() -> None:
    seen = []

    def before(arm):
        seen.append((arm.suggest("width", (1, 2)), arm.suggest("depth", ("a", "b"))))

    tuned(lambda _: 0.01, before, wanted=Wanted(trials=3, only={**ONLY, "recipe": ["bf16"]}))
    changes = sum(one != other for one, other in itertools.pairwise(seen))
    assert changes <= 3
    assert set(seen) <= {(w, d) for w in (1, 2) for d in "ab"}


def test_channels_last_is_left_alone_where_nothing_convolves() -> None:
    tuning, told = tuned(takes(bf16=6.0))
    assert "channels_last" in told.space.tried
    later = [trial.choice["channels_last"] for trial in tuning.trials[1:]]
    assert set(later) == {"no"}


def test_so_many_trials_are_made_as_are_wanted_in_all(tmp_path) -> None:
    storage = str(tmp_path / "journal.log")
    few = Wanted(trials=2, storage=storage, only=ONLY)
    tuning, told = tuned(takes(bf16=6.0), wanted=few)
    assert (len(told.trials), len(tuning.trials)) == (2, 2)
    more = Wanted(trials=5, storage=storage, only=ONLY)
    tuning, told = tuned(takes(bf16=6.0), wanted=more)
    assert (len(told.trials), len(tuning.trials)) == (3, 5)
    assert len({trial.text for trial in tuning.trials}) == 5
    assert tuning.best.text == "bf16"


def test_no_trial_begins_after_the_time_that_was_given() -> None:
    tuning, told = tuned(takes(), wanted=Wanted(trials=5, timeout_s=1e-9, only=ONLY))
    assert tuning.trials == []
    assert told.said[-1] == "no other trial begins after 1e-09 s"


def raising(error, recipes=("fp16", "fp32", "bf16-true", "fp16-true")):
    """Losses of which the candidate's by these recipes raise, once a trial has passed."""
    calls = dict.fromkeys(recipes, 0)

    def loss(arm):
        if arm.name == "amp" and str(arm.recipe) in calls:
            calls[str(arm.recipe)] += 1
            if calls[str(arm.recipe)] > 1:  # the first is the look at the setup
                raise error("enough")
        return 1.0

    return loss


def test_what_ends_the_search_leaves_what_was_tried(tmp_path) -> None:
    storage = str(tmp_path / "journal.log")
    with pytest.raises(KeyboardInterrupt):
        tuned(takes(bf16=6.0), loss=raising(KeyboardInterrupt),
              wanted=Wanted(storage=storage, only=ONLY))  # fmt: skip
    tuning, _ = tuned(takes(bf16=6.0), wanted=Wanted(trials=2, storage=storage, only=ONLY))
    assert tuning.trials[0].text == "bf16"
    assert len(tuning.trials) == 2


def test_a_choice_by_which_a_step_can_t_be_measured_is_a_trial_too() -> None:
    tuning, _ = tuned(takes(bf16=6.0), loss=raising(AmpError))
    verdicts = [trial.outcome.verdict for trial in tuning.trials]
    assert verdicts == ["pass", "error", "error", "error", "error"]
    assert tuning.trials[1].outcome.why == "AmpError: enough"


def test_a_restricted_offer_is_resumed_by_the_same_command(tmp_path) -> None:
    def before(arm):
        return (arm.suggest("batch_size", (8, 16, 32)),)

    for trials in (1, 2):
        wanted = Wanted(
            trials=trials, storage=str(tmp_path / "journal.log"),
            only={**ONLY, "recipe": ["bf16"], "batch_size": ["8", "32"]},
        )  # fmt: skip
        tuning, told = tuned(lambda _, chosen: chosen[0] / 1e5, before, wanted=wanted)
        assert len(tuning.trials) == trials
    assert {trial.choice["batch_size"] for trial in tuning.trials} == {8, 32}
    assert told.space.suggested["batch_size"] == (8, 16, 32)


@pytest.mark.parametrize("values", [("16", "32"), (16, None), (0, 16), (True, 2)])
def test_a_batch_size_is_a_number(values) -> None:
    with pytest.raises(AmpError, match="compared by their time per example, so offer numbers"):
        tuned(takes(), lambda arm: arm.suggest("batch_size", values) and None)


def test_what_is_asked_in_a_step_or_by_one_recipe_is_known_from_the_start() -> None:
    def loss(arm):
        arm.suggest("chunks", (1, 2))
        if str(arm.recipe) == "fp16":
            arm.suggest("foreach", (True, False))
        return 1.0

    only = {**ONLY, "recipe": ["bf16", "fp16"], "chunks": ["1"], "channels_last": ["no"]}
    tuning, told = tuned(takes(bf16=6.0), loss=loss, only=only)
    assert told.space.suggested == {"chunks": (1, 2), "foreach": (True, False)}
    found = [(trial.choice["recipe"], trial.choice.get("foreach")) for trial in tuning.trials]
    assert sorted(found, key=str) == [("bf16", None), ("fp16", False), ("fp16", True)]
    assert tuning.usual["chunks"] == 1


def test_channels_last_is_kept_where_the_user_or_the_setup_has_a_say() -> None:
    tuning, _ = tuned(takes(bf16=6.0), only={**ONLY, "recipe": ["bf16"], "channels_last": ["yes"]})
    assert [trial.text for trial in tuning.trials] == ["bf16+channels_last"]
    tuning, _ = tuned(
        takes(bf16=6.0), lambda arm: arm.suggest("net", ("mlp", "cnn")) and None,
        only={**ONLY, "recipe": ["bf16"]},
    )  # fmt: skip
    assert len(tuning.trials) == 4


def test_blocks_in_which_steps_are_skipped_are_told() -> None:
    def before(arm):
        weight = torch.nn.Parameter(torch.ones(2))
        return weight, torch.optim.SGD([weight], lr=0.0)

    def seconds(arm, chosen):
        weight, optimizer = chosen
        optimizer.zero_grad()
        loss = (weight * 1.0).sum()
        if arm.scaler.is_enabled() and arm.scaler.get_scale() > 1024:
            loss = loss * float("inf")
        arm.scaler.scale(loss).backward()
        arm.scaler.step(optimizer)
        arm.scaler.update()
        return 0.004

    tuning, _ = tuned(
        seconds, before,
        only={**ONLY, "recipe": ["fp16"], "growth_interval": ["1"], "channels_last": ["no"]},
        candidate="fp16", ignore="AMP", max_loss_diff=None,
    )  # fmt: skip
    [trial] = tuning.trials
    assert trial.outcome.verdict == "inconclusive"
    assert "the GradScaler skipped steps in" in trial.outcome.why


def test_a_setup_that_raises_ends_it_at_once() -> None:
    def before(arm):
        raise LookupError("no data")

    with pytest.raises(LookupError, match="no data"):
        tuned(takes(), before)


def test_nothing_is_emulated_and_timed_as_evidence() -> None:
    with pytest.raises(AmpError, match=r"--only recipe=fp8: .*(no float8|needs torchao)"):
        tuned(takes(), only={"recipe": ["fp8"]})
