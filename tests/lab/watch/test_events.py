"""What happens in a step, to be subscribed to: each event is told, and nothing stays patched."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.amp import GradScaler
from torch.optim.lr_scheduler import StepLR

from pytest_amp.lab.watch import events
from pytest_amp.lab.watch.events import subscribed


class Cast(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(_, value):
        return value


def step() -> None:
    """One of everything: a scaled step under autocast with a scheduler."""
    model, x = nn.Linear(2, 2), torch.ones(1, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = StepLR(optimizer, 1)
    scaler = GradScaler("cpu")
    scaler.load_state_dict(GradScaler("cpu").state_dict())
    F.scaled_dot_product_attention(*(torch.ones(1, 2, 2),) * 3)
    F.rms_norm(F.dropout(x), (2,))
    nn.RNNCell(2, 2)(x)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x).float().sum()
        Cast.apply(torch.ones(1))
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    schedule.step()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int)


def profiled() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        torch.ones(1)


def attributes() -> dict[tuple[str, str], Any]:
    return {
        (str(owner), name): vars(owner).get(name)
        for _, owner, names in events._EVENTS.values()
        for name in names
    }


@pytest.mark.parametrize("event", events._EVENTS)
def test_each_event_is_told_around_what_it_is_and_then_no_more(event: str) -> None:
    what: Callable[[], None] = profiled if event.startswith("profiler") else step
    told = []

    def around(original: Any, *args: Any, **kwargs: Any) -> Any:
        told.append(event)
        return original(*args, **kwargs)

    before = attributes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the profiler's own
        with subscribed(**{event: around}):
            what()
        assert told
        told.clear()
        what()
    assert told == []
    assert attributes() == before


def test_who_subscribed_last_is_asked_first_and_may_leave_the_rest_out() -> None:
    told = []

    def outer(original: Any, *args: Any, **kwargs: Any) -> Any:
        told.append("outer")
        return original(*args, **kwargs)

    def inner(original: Any, tensor: torch.Tensor, *_: Any, **__: Any) -> Any:
        told.append("inner")
        return tensor

    whole = torch.ones(2)
    with subscribed(cast=outer), subscribed(cast=inner):
        assert whole.double() is whole
    assert told == ["inner"]
    with subscribed(cast=inner), subscribed(cast=outer):
        assert whole.double() is whole
    assert told == ["inner", "outer", "inner"]


def test_what_is_raised_inside_leaves_nothing_patched() -> None:
    before = attributes()
    with pytest.raises(RuntimeError, match="of the step"), subscribed(cast=step, scale=step):
        raise RuntimeError("of the step")
    assert attributes() == before


def test_an_event_that_there_is_not_is_an_error() -> None:
    with pytest.raises(KeyError, match="no_such_event"), subscribed(no_such_event=step):
        pass
