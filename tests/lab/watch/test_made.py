"""The line that makes an optimizer or a scaler, whatever constructors it goes through."""

from __future__ import annotations

import inspect

import torch
from torch.amp import GradScaler

from pytest_amp.lab.watch.made import made_at, noted
from tests.helpers.lab import workbench

HERE = "tests/lab/watch/test_made.py"


def here() -> int:
    return inspect.currentframe().f_back.f_lineno


def parameters():
    return [torch.zeros(2, requires_grad=True)]


class Own(torch.optim.SGD):
    def __init__(self, given, lr):
        super().__init__(given, lr=lr)


class OwnScaler(GradScaler):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


def made_by_a_function():
    return torch.optim.AdamW(parameters()), here()


def test_the_line_that_calls_the_constructor_is_kept() -> None:
    with noted():
        plain, plain_line = made_by_a_function()
        own, own_line = Own(parameters(), lr=0.1), here()
        scaler, scaler_line = OwnScaler("cpu"), here()
    assert made_at(plain) == f"{HERE}:{plain_line}"
    assert made_at(own) == f"{HERE}:{own_line}"
    assert made_at(scaler) == f"{HERE}:{scaler_line}"


def test_what_was_made_before_has_no_line() -> None:
    before = torch.optim.SGD(parameters(), lr=0.1)
    with noted():
        pass
    after = torch.optim.SGD(parameters(), lr=0.1)
    assert (made_at(before), made_at(after)) == (None, None)


def test_an_arm_is_watched_as_it_is_built_and_not_in_its_steps() -> None:
    def setup(arm):
        first, line = torch.optim.SGD(parameters(), lr=0.1), here()
        return lambda: (first, line, torch.optim.SGD(parameters(), lr=0.1))

    with workbench(setup).built("amp") as resident, resident.active():
        first, line, later = resident.step()
        assert made_at(first) == f"{HERE}:{line}"
        assert made_at(later) is None
