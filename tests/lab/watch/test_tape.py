"""What a run keeps of its scalars, on the device: the values, and no room that grows with steps."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_amp.lab.phases import parity
from pytest_amp.lab.watch.losses import LossCurves
from pytest_amp.lab.watch.tape import FIRST, Tape
from tests.helpers.lab import codes, measure, workbench


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(1.5),
        torch.tensor([[2.5]]),
        torch.tensor(0.1, dtype=torch.float64),
        torch.tensor(3.0, dtype=torch.float16),
        torch.tensor(2**40 + 1),
        torch.tensor(True),
        torch.tensor(float("nan")),
        torch.tensor(2.0, requires_grad=True),
        torch.arange(4.0).expand(3, 4)[1, 2],
    ],
)
def test_a_scalar_is_kept_as_it_was(value) -> None:
    kept = Tape().keep(value)
    assert repr(kept.item()) == repr(value.item())
    assert kept.dtype is value.dtype
    assert not kept.requires_grad
    with torch.no_grad():
        value.zero_()
    assert value.dtype is torch.bool or kept.item() != 0


def test_each_has_a_place_of_its_own_however_many_there_are() -> None:
    tape = Tape()
    kept = [tape.keep(torch.tensor(float(n))) for n in range(5 * FIRST)]
    assert [each.item() for each in kept] == list(range(5 * FIRST))


def test_room_is_taken_in_ever_larger_pieces() -> None:
    tape = Tape()
    rooms = [tape.keep(torch.tensor(1.0)).untyped_storage() for _ in range(7 * FIRST)]
    sizes = {room.data_ptr(): room.nbytes() // 4 for room in rooms}
    assert list(sizes.values()) == [FIRST, 2 * FIRST, 4 * FIRST]


def test_losses_of_several_dtypes_stay_apart() -> None:
    curves = LossCurves()
    curves.append({"a": torch.tensor(0.1, dtype=torch.float64), "b": torch.tensor(1.0)})
    curves.append({"a": torch.tensor(0.2, dtype=torch.float64), "b": 2})
    assert curves.read() == {"a": (0.1, 0.2), "b": (1.0, 2.0)}


def test_keeping_is_none_of_the_steps_operators() -> None:
    seen = []

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    value, tape = torch.tensor(1.0), Tape()
    with Noting():
        tape.keep(value)
    assert [func for func in seen if "detach" not in str(func)] == []


# In a run: on the CPU's allocator, whose levels are exact.


def adversaries(arm):
    """Two losses, two optimizers, one scaler."""
    parts = [nn.Linear(8, 8), nn.Linear(8, 8)]
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.01) for part in parts]
    x = torch.randn(4, 8)

    def step():
        losses = {}
        for name, part, optimizer in zip("gd", parts, optimizers, strict=True):
            optimizer.zero_grad()
            with arm.autocast():
                losses[name] = part(x).float().square().mean()
            arm.scaler.scale(losses[name]).backward()
            arm.scaler.step(optimizer)
        arm.scaler.update()
        return losses

    return step


@pytest.mark.parametrize("name", ["fp32", "amp"])
def test_levels_are_flat_where_the_step_keeps_nothing(name) -> None:
    run, _ = parity.run(workbench(adversaries, torch.float16), name, 12)
    later = run.levels[len(run.levels) // 2 :]
    assert [after - before for before, after in pairwise(later)] == [0] * (len(later) - 1)


def test_a_list_of_tensors_that_is_longer_with_each_step_is_still_found() -> None:
    def setup(arm):
        step, kept = adversaries(arm), []

        def keeping():
            kept.append(torch.ones(256))  # 1 KiB, which was below what we used to keep ourselves
            return step()

        return keeping

    assert codes(measure(setup, dtype="float16", steps=10)) == ["AMP502"]
    assert codes(measure(adversaries, dtype="float16", steps=10)) == []


def test_a_scaler_of_ones_own_is_noted_in_the_same_room() -> None:
    def setup(arm):
        arm.scaler = GradScaler("cpu", enabled=arm.enabled)
        return adversaries(arm)

    run, _ = parity.run(workbench(setup, torch.float16), "amp", 12)
    assert len(run.scales) == 12
    assert len(set(run.levels[6:])) == 1
