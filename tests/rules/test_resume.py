"""AMP212 on records at its limits."""

from __future__ import annotations

import math

import pytest

from pytest_amp.observations import LeftOut, Resume
from tests.helpers.observations import findings, seen

SAME = ((1.0, 1.0),) * 3
LATER = ((1.0, 1.0), (0.9, 0.8), (0.8, 0.6))
OFF = (0.0, 1 / 9, 0.25)
SCALES = (1024.0, 65536.0)


def left_out(kind="scaler", name="GradScaler", losses=SAME, differences=(0.0,) * 3, **more):
    return LeftOut(kind, name, losses=losses, differences=differences, **more)


def heard(*missing, noise=0.0, state_noise=0.0, held=("model", "optimizer")):
    amp = {"checkpoint": held, "checkpoint_at": "train.py:7"}
    return findings(seen(amp=amp, resume=Resume(10, missing, noise, state_noise)))


def test_a_scaler_that_starts_again_is_told_with_both_scales() -> None:
    [found] = heard(left_out(scales=SCALES))
    assert (found.code, found.severity, found.location) == ("AMP212", "error", "train.py:7")
    assert found.message.startswith("the loss scale was 1024 and is 65536 after a resume: ")
    assert "leaves out the GradScaler" in found.message
    assert "(scaler=...)" in found.message
    assert found.evidence["scales"] == [1024.0, 65536.0]
    assert found.evidence["first_step"] is None


def test_the_first_loss_that_differs_is_told_with_its_step() -> None:
    [found] = heard(left_out("scheduler", "StepLR", LATER, OFF, state=1.0))
    assert found.severity == "error"
    assert "resumed after step 10, the loss of step 12 is 0.8 and not 0.9 (off by 11%)" in (
        found.message
    )
    assert "leaves out the scheduler StepLR" in found.message
    assert (found.evidence["first_step"], found.evidence["losses"]) == (12, [0.9, 0.8])


def test_each_thing_that_is_missed_is_a_finding() -> None:
    found = heard(left_out(scales=SCALES), left_out("optimizer", "AdamW", LATER, OFF))
    assert [each.evidence["kind"] for each in found] == ["scaler", "optimizer"]


@pytest.mark.parametrize("kind", ["model", "other"])
def test_an_average_that_no_loss_depends_on_is_an_error(kind) -> None:
    [found] = heard(left_out(kind, "Average", state=0.01))
    assert found.severity == "error"
    assert "though the losses of the next 3 steps are" in found.message
    assert "(model=...)" not in found.message  # the name is taken, or none of ours


@pytest.mark.parametrize(
    "quiet",
    [
        left_out("scheduler", "StepLR", state=math.inf),
        left_out("model", "Net", state=0.01, in_checkpoint=True),
    ],
)
def test_what_the_next_steps_do_not_show_is_a_warning(quiet) -> None:
    [found] = heard(quiet)
    assert found.severity == "warning"


def test_a_state_dict_that_leaves_something_out_is_told_as_such() -> None:
    [found] = heard(left_out("model", "Net", LATER, OFF, in_checkpoint=True))
    assert found.severity == "error"
    assert "the checkpoint holds the model Net, but its state_dict()" in found.message


@pytest.mark.parametrize(
    "harmless",
    [
        left_out(scales=(1024.0, 1024.0)),
        left_out("model", "Net", state=0.9e-5),
        left_out("optimizer", "SGD", SAME, (0.0, 0.9e-5, 0.0)),
    ],
)
def test_what_makes_no_difference_is_not_told(harmless) -> None:
    assert heard(harmless) == ()


def test_a_difference_must_stand_out_of_the_noise() -> None:
    off = left_out("optimizer", "SGD", LATER, (0.0, 9e-4, 9e-4))
    assert heard(off, noise=1e-4) == ()
    assert len(heard(off, noise=0.8e-4)) == 1
    average = left_out("model", "Net", state=9e-4)
    assert heard(average, state_noise=1e-4) == ()
    assert len(heard(average, state_noise=0.8e-4)) == 1


def test_a_scaler_whose_scale_differs_only_in_the_end_is_told() -> None:
    [found] = heard(left_out(scales=(1024.0, 1024.0), state=0.5))
    assert found.severity == "warning"
    assert "resumed after step 10, the GradScaler is not what it would have been" in found.message


def test_without_a_checkpoint_nothing_is_said() -> None:
    assert findings(seen()) == ()
    assert heard() == ()
