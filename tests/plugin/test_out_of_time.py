"""A timeout says where the measurement was, and what may help."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_amp.plugin.out_of_time import located
from pytest_amp.progress import Progress

JOB: Any = SimpleNamespace(settings=SimpleNamespace(max_time=30.0))
TIMEOUT = "Timeout (>2.0s) from pytest-timeout."


def noted(said: str, *place: Any) -> str:
    """What is added to a failure that arrives in this place."""
    progress = Progress()
    progress.at(*place)
    with pytest.raises(pytest.fail.Exception) as caught, located(JOB, progress):
        pytest.fail(said)
    return "\n".join(caught.value.__notes__)


def test_it_names_the_arm_and_the_step() -> None:
    said = noted(TIMEOUT, "parity", "amp", 3)
    assert said == "pytest-amp: raised in the amp arm, step 3 (parity)"


@pytest.mark.parametrize(
    "place", [("warm-up", "fp32", 1), ("calibration", None), ("timing", "amp", 12)]
)
def test_in_what_has_a_budget_it_names_the_budget(place: tuple[Any, ...]) -> None:
    said = noted(TIMEOUT, *place)
    assert "timing alone may take 30.0 s" in said
    assert "--amp-max-time" in said


def test_what_is_timed_is_a_pair_of_blocks() -> None:
    assert "the amp arm, pair 12 (timing)" in noted(TIMEOUT, "timing", "amp", 12)


def test_while_it_waits_for_its_turn_it_names_the_others() -> None:
    assert "take turns" in noted(TIMEOUT, "waiting: another test measures on cpu", None)


def test_what_the_user_fails_is_no_timeout() -> None:
    said = noted("the loss is bad", "timing", "amp", 12)
    assert said == "pytest-amp: raised in the amp arm, pair 12 (timing)"


def test_an_expected_failure_is_left_alone() -> None:
    with pytest.raises(pytest.xfail.Exception) as caught, located(JOB, Progress()):
        pytest.xfail("known")
    assert not hasattr(caught.value, "__notes__")
