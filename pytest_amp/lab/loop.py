"""Drive a training loop that owns the control, one step at a time.

The loop runs in a greenlet: on a stack of its own, in the thread that calls the step. So dispatch
modes, autocast, signal handlers and Ctrl-C reach it as they reach any step.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import _pop_mode, _push_mode

from pytest_amp import extras
from pytest_amp.errors import AmpError, unless_our_bug

__tracebackhide__ = unless_our_bug

Tick = Callable[[Any], None]
Run = Callable[[Tick], object]
# A trainer may swallow what ends it and train on, but not for ever.
_PATIENCE = 100


class LoopEnded(BaseException):
    """Is raised by ``tick()`` once an arm is done with; `finally` blocks of the loop run."""


class Loop:
    """A step that runs a training loop up to its next tick, and returns the loss that it told.

    Args:
        run: trains, and calls ``tick(loss)`` after every optimizer step.

    Raises:
        AmpError: greenlet is not installed.
    """

    def __init__(self, run: Run) -> None:
        if missing := extras.missing("loop", "arm.loop needs", "greenlet"):
            raise AmpError(missing)
        import greenlet

        self._greenlets: Any = greenlet
        self._run = run
        self._inside: Any = None
        self._outside: Any = None
        self._in_force = _InForce()
        self._steps = self._refused = 0
        self._closing = False

    def __call__(self) -> Any:
        """Go on to the next tick.

        Raises:
            AmpError: the loop has ended.
            Exception: whatever the loop raised.
        """
        if self._inside is None:
            self._inside = self._greenlets.greenlet(self._train)
            self._inside.gr_context = contextvars.copy_context()
        loss = None if self._inside.dead else self._switch()
        if self._inside.dead:
            raise AmpError(self._why_it_ended())
        return loss

    def close(self) -> None:
        """Unwind the loop.

        Raises:
            AmpError: it can't be ended.
            Exception: whatever the loop raised meanwhile.
        """
        if self._inside is None:
            return
        self._closing = True
        try:
            if not self._inside.dead:
                self._switch(LoopEnded)
        except (LoopEnded, SystemExit):  # a trainer may make one of the other
            return
        if not self._inside.dead:
            raise AmpError(
                f"the training loop goes on although tick() raised LoopEnded {_PATIENCE} times: "
                "let a BaseException end it"
            )

    def tick(self, loss: Any) -> None:
        """Tell the loss of the step that has just been done, and wait for the next one to begin.

        Raises:
            AmpError: it was called elsewhere than in the loop's own thread, or in a backward pass.
            LoopEnded: no more steps are wanted.
        """
        if self._greenlets.getcurrent() is not self._inside:
            raise AmpError(
                "tick() was called from elsewhere than the loop, such as a thread: call it where "
                "the loop runs"
            )
        if torch._C._current_graph_task_id() != -1:
            raise AmpError(
                "tick() was called inside a backward pass: call it behind optimizer.step()"
            )
        if self._closing:  # the loop has swallowed what should have ended it
            self._refused += 1
            if self._refused == _PATIENCE:
                self._outside.switch()  # for good
            raise LoopEnded
        self._steps += 1
        self._outside.switch(loss)

    def _train(self) -> None:
        self._run(self.tick)

    def _switch(self, *raising: type[BaseException]) -> Any:
        self._outside = self._greenlets.getcurrent()
        self._inside.parent = self._outside  # what the loop raises goes there
        self._in_force.put_on()
        try:
            return self._inside.throw(*raising) if raising else self._inside.switch()
        finally:
            self._in_force.take_off()

    def _why_it_ended(self) -> str:
        if not self._steps:
            return (
                "run(tick) returned without a single tick(loss): call it after every optimizer step"
            )
        return (
            f"the training loop ended after step {self._steps}: the experiment may ask for many "
            "more, so let it run without limit (max_steps=-1, max_epochs=-1, or 10**9)"
        )


class _InForce:
    """What the loop has in force above its caller, such as an autocast region around its steps.

    It is taken off while the caller runs. Only what the loop itself changed is kept, so that what
    the caller enters around a step is in force inside.
    """

    def __init__(self) -> None:
        self._own: dict[str, Any] = {}
        self._outer: dict[str, Any] = {}
        self._nesting = self._outer_nesting = 0
        self._modes: list[Any] = []
        self._functions: list[Any] = []
        self._depths = (0, 0)

    def put_on(self) -> None:
        """Put it on, above what is in force now."""
        self._outer, self._outer_nesting, self._depths = _read(), _nesting(), _depths()
        _write(self._own)
        for _ in range(self._nesting):
            torch.autocast_increment_nesting()
        for mode in self._modes:
            _push_mode(mode)
        for mode in self._functions:
            torch._C._push_on_torch_function_stack(mode)

    def take_off(self) -> None:
        """Take it off, and keep it for the next time."""
        self._modes, self._functions = [], []
        while torch._C._len_torch_dispatch_stack() > self._depths[0]:
            self._modes.insert(0, _pop_mode())
        while torch._C._len_torch_function_stack() > self._depths[1]:
            self._functions.insert(0, torch._C._pop_torch_function_stack())
        now = _read()
        self._own = {name: now[name] for name in now if now[name] != self._outer[name]}
        _write({name: self._outer[name] for name in self._own})
        self._nesting = _nesting() - self._outer_nesting
        for _ in range(self._nesting):
            torch.autocast_decrement_nesting()


_KINDS = ("cpu", "cuda", "xpu", "mps")


def _read() -> dict[str, Any]:
    """Return what torch keeps for each thread."""
    state: dict[str, Any] = {
        "grad": torch.is_grad_enabled(),
        "cache": torch.is_autocast_cache_enabled(),
    }
    for kind in _KINDS:
        try:
            state[kind] = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        except RuntimeError:  # this torch knows no such device
            continue
    return state


def _write(state: dict[str, Any]) -> None:
    for name, value in state.items():
        if name == "grad":
            torch._C._set_grad_enabled(value)
        elif name == "cache":
            torch.set_autocast_cache_enabled(value)
        else:
            torch.set_autocast_enabled(name, value[0])
            torch.set_autocast_dtype(name, value[1])


def _depths() -> tuple[int, int]:
    return torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack()


def _nesting() -> int:
    torch.autocast_increment_nesting()
    return int(torch.autocast_decrement_nesting())
