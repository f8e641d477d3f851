"""Arms in memory together, each with the global state that it set for itself."""

from __future__ import annotations

import os
from contextlib import ExitStack

import torch

from pytest_amp.lab.workbench import Turns
from tests.helpers.lab import workbench


def setup(arm):
    """Set an environment variable; a step draws a number and returns both."""
    os.environ["WHOSE"] = arm.name

    def step():
        return os.environ["WHOSE"], float(torch.rand(()))

    return step


def by_turns(order: str) -> tuple[dict[str, list[float]], int]:
    """Run steps by turns: return what each arm drew, and how often global state was changed."""
    bench, swaps = workbench(setup), 0
    drawn: dict[str, list[float]] = {"a": [], "f": []}
    swap = bench.globals.swap

    def counted(state):
        nonlocal swaps
        swaps += 1
        return swap(state)

    with ExitStack() as stack:
        arms = {name[0]: stack.enter_context(bench.built(name)) for name in ("fp32", "amp")}
        bench.globals.swap = counted
        turns = Turns(bench)
        for turn in order:
            with turns.of(arms[turn]):
                whose, number = arms[turn].step()
            assert whose[0] == turn
            drawn[turn].append(number)
        turns.end()
        done = swaps
    return drawn, done


def test_each_arm_goes_on_with_its_own_state_whoever_ran_in_between() -> None:
    drawn, _ = by_turns("faafaff")
    alone, _ = by_turns("ffff")
    assert drawn["f"] == alone["f"]
    assert drawn["a"] == alone["f"][:3]  # both began from one seed


def test_the_caller_s_state_is_back_at_the_end() -> None:
    before = torch.get_rng_state()
    by_turns("fafa")
    assert "WHOSE" not in os.environ
    assert torch.equal(torch.get_rng_state(), before)


def test_state_is_changed_only_where_another_one_s_turn_comes() -> None:
    assert by_turns("ffaaaf")[1] == 4
    assert by_turns("f")[1] == 2
    assert by_turns("")[1] == 0
