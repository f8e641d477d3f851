"""What rounding does to updates of old reduced tensors: what is counted, and what is left out."""

from __future__ import annotations

import inspect

import pytest
import torch

from pytest_amp.lab.watch.operators import OpRecord
from tests.helpers.lab import measure, train

BF16 = torch.bfloat16


def updates(step):
    """What a step did to tensors that it found there."""
    record = OpRecord()
    with record.watching():
        step()
    return record.operators().updates


def counts(step):
    """The elements that should have changed, and those of them that did not."""
    return [(each.wanted, each.lost) for each in updates(step)]


def ones(*shape, dtype=BF16):
    return torch.ones(*shape, dtype=dtype)


TINY = 2**-12  # of 1.0, of which bfloat16 keeps 2**-8 and float16 2**-11

AVERAGES = {
    "mul_ and add_": lambda e, w: e.mul_(1 - TINY).add_(w, alpha=TINY),
    "add_ of a product": lambda e, w: e.mul_(1 - TINY).add_(TINY * w),
    "lerp_": lambda e, w: e.lerp_(w, TINY),
    "sub_": lambda e, w: e.sub_(TINY * (e - w)),
    "copy_": lambda e, w: e.copy_((1 - TINY) * e + TINY * w),
    "copy_ from float32": lambda e, w: e.copy_((1 - TINY) * e.float() + TINY * w.float()),
    "out": lambda e, w: torch.lerp(e, w, TINY, out=e),
    "a view": lambda e, w: e.view(-1).lerp_(w.view(-1), TINY),
    "data": lambda e, w: setattr(e, "data", (1 - TINY) * e.data + TINY * w.data),
    "foreach": lambda e, w: torch._foreach_lerp_([e], [w], TINY),
    "foreach addcdiv": lambda e, w: torch._foreach_addcdiv_([e], [w - e], [ones(())], [TINY]),
}


@pytest.mark.parametrize("dtype", [BF16, torch.float16])
@pytest.mark.parametrize("how", AVERAGES)
def test_an_average_that_stays_is_lost_and_one_that_moves_is_not(how, dtype) -> None:
    weight = 1.5 * ones(3, 4, dtype=dtype)
    kept, moved = ones(3, 4, dtype=dtype), 1e-4 * ones(3, 4, dtype=dtype)
    assert counts(lambda: AVERAGES[how](kept, weight)) == [(12, 12)]
    assert counts(lambda: AVERAGES[how](moved, weight)) == [(12, 0)]


@pytest.mark.parametrize("how", AVERAGES)
def test_an_average_that_has_arrived_has_nowhere_to_go(how) -> None:
    average = torch.randn(64).to(BF16)
    weight = average.clone()
    assert sum(wanted for wanted, _ in counts(lambda: AVERAGES[how](average, weight))) == 0


def test_the_line_is_that_of_the_update() -> None:
    average = ones(4)

    def step():
        average.mul_(1 - TINY)
        average.add_(2.0, alpha=TINY)

    (update,) = updates(step)
    line = inspect.getsourcelines(step)[1] + 2
    assert update.location == f"tests/lab/watch/test_updates.py:{line}"
    assert (update.dtype, update.elements) == ("bfloat16", 4)


def test_what_several_operators_do_to_a_value_counts_once() -> None:
    total = ones(4)
    assert counts(lambda: total.add_(TINY).sub_(TINY)) == [(0, 0)]
    assert counts(lambda: total.add_(TINY).mul_(2)) == [(4, 0)]
    assert counts(lambda: total.add_(TINY).clamp_(max=1.0)) == [(4, 0)]


@pytest.mark.parametrize("how", ["index_add_", "scatter_add_"])
def test_a_sum_that_is_scattered_is_followed(how) -> None:
    total, where, amounts = 512 * ones(8), torch.arange(4), ones(4)
    assert counts(lambda: getattr(total, how)(0, where, amounts)) == [(4, 4)]


def test_of_a_large_tensor_a_sample_stands_for_all() -> None:
    large = ones(1000, 300)
    (update,) = updates(lambda: large.add_(TINY))
    assert update.elements == 300_000
    assert update.wanted == update.lost == pytest.approx(300_000, rel=0.01)


def float32():
    total = torch.ones(4)
    return lambda: total.add_(1e-12)


def made_in_the_step():
    return lambda: ones(4).add_(TINY)


def overwritten():
    total, exact = ones(4), torch.ones(4)
    return lambda: total.copy_(exact.add_(TINY))


def changed_by_something_else_as_well():
    total = ones(4)
    return lambda: torch.nn.init.uniform_(total.add_(TINY))


def rounded_at_random():
    total = ones(4)
    return lambda: total.copy_(total.float() + TINY + (torch.rand(4) - 0.5) * 2**-9)


def compensated():
    total, rest = ones(4), torch.zeros(4, dtype=BF16)

    def step():
        change = TINY + rest
        after = total + change
        rest.copy_(change - (after - total))
        total.copy_(after)

    return step


def an_optimizer_s_own():
    weight = torch.nn.Parameter(ones(4))
    optimizer = torch.optim.SGD([weight], lr=TINY)

    def step():
        weight.grad = ones(4)
        optimizer.step()

    return step


@pytest.mark.parametrize(
    "make",
    [
        float32,
        made_in_the_step,
        overwritten,
        changed_by_something_else_as_well,
        rounded_at_random,
        compensated,
        an_optimizer_s_own,
    ],
)
def test_what_is_meant_to_be_so_is_left_out(make) -> None:
    assert sum(lost for _, lost in counts(make())) == 0


def test_what_an_optimizer_s_hook_does_to_other_tensors_is_the_user_s() -> None:
    average, weight = ones(4), torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    optimizer.register_step_post_hook(lambda *_: average.add_(TINY))
    assert counts(optimizer.step) == [(4, 4)]


def test_a_call_that_fails_fails_as_it_would_have() -> None:
    total = ones(4)
    with pytest.raises(RuntimeError, match="must match the size"):
        updates(lambda: total.add_(ones(3)))


def test_the_inspected_step_s_are_reported_once() -> None:
    def setup(arm):
        layer, total = torch.nn.Linear(8, 4), 512 * ones(4)
        x, optimizer = torch.randn(8, 8), torch.optim.SGD(layer.parameters(), lr=0.1)

        def loss_of():
            total.add_(1)
            return layer(x).float().square().mean()

        return train(arm, optimizer, loss_of)

    (found,) = measure(setup).findings
    assert (found.code, found.evidence["lost"]) == ("AMP307", 1.0)
