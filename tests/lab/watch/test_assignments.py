"""The line on which a value got its name, in whatever function that was."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

from pytest_amp.lab.watch.assignments import assigned_at, names_of
from pytest_amp.observations import Named

HERE = "tests/lab/watch/test_assignments.py"
LOADED = torch.ones(3)


def here() -> int:
    """The line of the caller."""
    return inspect.currentframe().f_back.f_lineno


def called(value):
    """A function to which the value is an argument."""
    return names_of(value)


def test_an_argument_is_followed_to_where_the_caller_made_it() -> None:
    batch, line = torch.ones(2), here()
    assert assigned_at(called(batch)) == f"{HERE}:{line}"


def test_of_several_assignments_the_last_one_before_the_call_counts() -> None:
    batch = torch.ones(2)
    batch, line = batch + 1, here()
    names = called(batch)
    batch = names
    assert assigned_at(names) == f"{HERE}:{line}"


def test_a_loop_and_a_closure_are_looked_through() -> None:
    outer, line = torch.ones(2), here()

    def inner():
        return called(outer)

    assert assigned_at(inner()) == f"{HERE}:{line}"
    for each in (torch.ones(2),):
        line = here() - 1
        assert assigned_at(called(each)) == f"{HERE}:{line}"


def test_a_batch_is_found_in_what_holds_it() -> None:
    batch, line = {"x": torch.ones(2), "y": torch.zeros(2)}, here()
    assert assigned_at(called(batch["y"])) == f"{HERE}:{line}"


def test_what_a_module_holds_is_found_there() -> None:
    def reads_it():
        return called(LOADED)

    line = Path(__file__).read_text("utf-8").splitlines().index("LOADED = torch.ones(3)") + 1
    assert assigned_at(reads_it()) == f"{HERE}:{line}"


@pytest.mark.parametrize(
    "named",
    [
        (),
        (Named("no_such_file.py", 3, "x"),),
        (Named(__file__, 1, "nobody_assigns_this"),),
    ],
)
def test_a_value_without_a_name_has_no_line(named) -> None:
    assert assigned_at(named) is None


def test_a_data_set_is_not_searched() -> None:
    data = [torch.ones(1) for _ in range(1000)]
    assert {each.name for each in called(data[0])} == {"value"}
