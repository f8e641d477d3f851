"""Where inf and NaN were made, and which line wrote them where they are now."""

from __future__ import annotations

import inspect

import torch

from pytest_amp.lab.watch.nonfinite_trail import NonfiniteTrail

HERE = "tests/lab/watch/test_nonfinite_trail.py"


def here() -> int:
    return inspect.currentframe().f_back.f_lineno


def test_the_line_that_made_it_and_the_line_that_wrote_it_are_told_apart() -> None:
    kept, large = torch.zeros(3), torch.full((3,), 300.0, dtype=torch.float16)
    with NonfiniteTrail() as trail:
        square, made = large * large, here()
        square = square.float().mean(0)
        kept.mul_(0.9)
        written = here() + 1
        kept.add_(square)
        kept.mul_(0.9)
    origin = trail.origin_of(kept)
    assert (origin.op, origin.location) == ("aten::mul", f"{HERE}:{made}")
    assert trail.written_at(kept) == f"{HERE}:{written}"


def test_what_is_overwritten_with_finite_numbers_is_forgotten() -> None:
    kept = torch.zeros(3)
    with NonfiniteTrail() as trail:
        kept.fill_(torch.inf)
        kept.zero_()
        assert trail.written_at(kept) is None
        line = here() + 1
        kept.fill_(torch.nan)
    assert trail.written_at(kept) == f"{HERE}:{line}"


def test_looking_at_memory_in_another_dtype_does_not_lose_the_trail() -> None:
    kept = torch.zeros(3)
    with NonfiniteTrail() as trail:
        line = here() + 1
        kept.fill_(torch.inf)
        kept.view(torch.int32).sum()
        kept.detach().view(3, 1)
    assert trail.written_at(kept) == f"{HERE}:{line}"


def test_a_list_of_tensors_is_written_to_by_one_operator() -> None:
    weights = [torch.zeros(2), torch.zeros(2)]
    moves = [torch.zeros(2), torch.full((2,), torch.inf)]
    with NonfiniteTrail() as trail:
        line = here() + 1
        torch._foreach_add_(weights, moves)
    assert trail.written_at(weights[0]) is None
    assert trail.written_at(weights[1]) == f"{HERE}:{line}"


def test_what_was_there_before_has_no_trail() -> None:
    kept = torch.full((3,), torch.inf)
    with NonfiniteTrail() as trail:
        kept.mul(2)
    assert trail.origin_of(kept) is None


def test_the_line_that_makes_it_finite_is_known_in_place_and_anew() -> None:
    kept = torch.zeros(3)
    with NonfiniteTrail() as trail:
        kept.fill_(torch.inf)
        new, anew = torch.nan_to_num(kept), here()
        line = here() + 1
        kept.clamp_(-1, 1)
    assert trail.cleared_at(new) == f"{HERE}:{anew}"
    assert trail.cleared_at(kept) == f"{HERE}:{line}"
    assert trail.cleared_at(torch.zeros(3)) is None
