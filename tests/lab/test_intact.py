"""Whatever a signal's exception interrupts, nothing of a measurement stays in the process.

Python lets a signal's handler raise between any two bytecodes; it looks for signals when a function
is entered and when a call returns. A profile function is called in these very places, and so stands
in for the signal here: each place in our own code is interrupted once.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import pytest_amp
from pytest_amp.lab.intact import intact
from pytest_amp.lab.machine import garbage, lock
from pytest_amp.lab.machine.device import Device
from pytest_amp.lab.machine.global_state import GlobalState
from pytest_amp.lab.machine.torch_globals import table
from pytest_amp.lab.machine.untraced import untraced
from pytest_amp.lab.watch import dispatch, events, patches
from pytest_amp.lab.watch.profiler import Profiler
from pytest_amp.progress import Progress
from tests.helpers import lab

# An exception while a generator is collected is lost, and told as a warning.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

PACKAGE = Path(pytest_amp.__file__).parent
OWNERS: tuple[Any, ...] = (
    torch, F, torch.Tensor, nn.Module, torch.optim.Optimizer, torch.optim.SGD, torch.amp.GradScaler,
    torch.autocast, torch.autograd, torch.autograd.Function, torch.optim.lr_scheduler.LRScheduler,
)  # fmt: skip


class Timeout(BaseException):
    """What pytest-timeout raises is no Exception either."""


class Interrupting:
    """Counts the places where a signal could raise, and raises in one of them."""

    def __init__(self, wanted: int | None) -> None:
        self._wanted = wanted
        self.places: dict[tuple[str, int, str, str], int] = {}
        self.count = 0

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        file = frame.f_code.co_filename
        if not file.startswith(str(PACKAGE)) or event == "c_call":
            return
        self.count += 1
        called = getattr(argument, "__name__", "") if event == "c_return" else ""
        place = (Path(file).relative_to(PACKAGE).as_posix(), frame.f_lineno, event, called)
        self.places.setdefault(place, self.count)
        if self.count == self._wanted:
            raise Timeout


def interrupted(run: Callable[[], object], wanted: int | None) -> Interrupting:
    """Run something, and raise in the place with that number."""
    interrupting = Interrupting(wanted)
    sys.setprofile(interrupting)
    try:
        run()
    except Timeout:
        pass
    finally:
        sys.setprofile(None)
    return interrupting


def everything() -> dict[str, object]:
    """What is process-wide."""
    found: dict[str, object] = {each.name: repr(each.read()) for each in table()}
    for owner in OWNERS:
        named = {name: each for name, each in vars(owner).items() if callable(each)}
        found |= {f"{owner.__name__}.{name}": id(each) for name, each in named.items()}
    found["frozen"] = gc.get_freeze_count() > 0
    found["profiled"] = torch.autograd._profiler_enabled()
    found["profiler"] = torch.autograd.profiler._is_profiler_enabled
    found["traced"] = sys.gettrace(), threading.gettrace()
    found["modes"] = len(_get_current_dispatch_mode_stack())
    with FileLock(lock._path(Device(lab.CPU))).acquire(timeout=0):
        pass
    return found


def everywhere(run: Callable[[], object], *, but: tuple[str, ...] = (), every: int = 1) -> int:
    """Interrupt something in each of our places, or in some; return how many there were."""
    run()  # what is cached from now on
    places = interrupted(run, None).places
    chosen = [(place, at) for place, at in places.items() if place[0] not in but][::every]
    before = everything()
    for place, at in chosen:
        interrupted(run, at)
        after = everything()
        left = {name for name in before if before[name] != after.get(name)}
        assert not left, f"interrupted at {place}"
    return len(chosen)


class Mode(dispatch.DispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def around(original: Any, *args: Any, **kwargs: Any) -> Any:
    return original(*args, **kwargs)


def trace(*_: object) -> None: ...


def watched() -> None:
    """Change everything that a measurement changes."""
    device = Device(lab.CPU)
    state = GlobalState(device)
    profiler = Profiler(activities=[torch.profiler.ProfilerActivity.CPU])
    with (
        lock.turn(device, Progress()),
        intact(state),
        garbage.older_objects_set_aside(device),
        events.subscribed(**dict.fromkeys(events._EVENTS, around)),
        events.subscribed(scale=around, backward=around),
        Mode(),
        ExitStack() as stack,
    ):
        stack.callback(profiler.stop)
        profiler.start()
        torch.set_default_dtype(torch.float64)
        torch.autocast("cpu").__enter__()
        untraced(torch.get_num_threads)


# The first reading of all that is global is over before anything changes, but for one counter,
# which reading changes for a moment.
READING = ("lab/machine/torch_globals.py",)


def setup(arm: Any) -> Any:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.ones(2, 4)
    return lab.train(arm, optimizer, lambda: F.mse_loss(model(x), x))


@pytest.fixture(autouse=True)
def _on_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With a lock that no other run takes, and no objects set aside."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gc.unfreeze()
    yield
    patches.take_off_all()


@pytest.mark.slow
def test_nothing_stays_wherever_the_watchers_are_interrupted() -> None:
    former = sys.gettrace(), threading.gettrace()
    sys.settrace(trace)
    threading.settrace(trace)
    try:
        assert everywhere(watched, but=READING) > 50
    finally:
        sys.settrace(former[0])
        threading.settrace(former[1])  # type: ignore[arg-type]


@pytest.mark.slow
def test_nothing_stays_wherever_an_experiment_is_interrupted() -> None:
    def measured() -> None:
        lab.measure(setup, steps=2, dtype="float16", policy="cuda")

    assert everywhere(measured, but=READING, every=300) > 5


def test_filters_of_warnings_whose_end_was_interrupted_are_put_back() -> None:
    before = list(warnings.filters)
    with intact(GlobalState(Device(lab.CPU))):
        warnings.catch_warnings().__enter__()
        warnings.simplefilter("ignore")
    assert warnings.filters == before


def test_what_the_user_puts_over_ours_stays_and_is_passed_through() -> None:
    heard: list[str] = []

    def listen(original: Any, *args: Any, **kwargs: Any) -> Any:
        heard.append("ours")
        return original(*args, **kwargs)

    original, x = F.scaled_dot_product_attention, torch.ones(1, 1, 2, 2)
    with events.subscribed(attention=listen):
        ours = F.scaled_dot_product_attention
        assert ours is not original
        theirs = F.scaled_dot_product_attention = partial(ours)
        F.scaled_dot_product_attention(x, x, x)
        assert F.scaled_dot_product_attention is theirs
    try:
        assert F.scaled_dot_product_attention is theirs
        F.scaled_dot_product_attention(x, x, x)
        assert heard == ["ours"]
    finally:
        F.scaled_dot_product_attention = original
