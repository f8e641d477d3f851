"""What runs aside knows nothing of what the calling thread has put in force."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_amp.lab.machine.aside import aside


class TorchFunctionRefusing(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        raise AssertionError(func)


class DispatchRefusing(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise AssertionError(func)


def test_it_returns_what_the_function_returns_and_raises_what_it_raises() -> None:
    assert aside(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        aside(lambda: 1 / 0)


def test_neither_modes_nor_autocast_nor_grad_mode_are_in_force() -> None:
    def look() -> tuple[object, ...]:
        made = torch.ones(2, 2, requires_grad=True) @ torch.ones(2, 2)
        return made.dtype, made.requires_grad, torch.is_inference_mode_enabled()

    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), torch.device("meta"):
        assert aside(look) == (torch.float32, True, False)
    with TorchFunctionRefusing(), DispatchRefusing():
        assert aside(look) == (torch.float32, True, False)


def test_it_is_no_thread_that_a_watch_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", None)
    assert aside(lambda: 1) == 1
