"""Subscribe to what happens in a training step. Nothing else in the package patches torch.

A subscriber is called around the event, as ``around(original, *args, **kwargs)``. It calls the
original itself, or leaves it out.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
import torch.autograd.profiler as autograd_profiler
from torch.amp import GradScaler
from torch.amp.autocast_mode import autocast
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.patches import lifted, patched, replaced, take_off_all, wrapped

__tracebackhide__ = unless_our_bug

Around = Callable[..., Any]

# By event: how it is seen (`wrapped` covers all subclasses too, and `lifted` is for what others may
# override), the owner, and the attributes.
_EVENTS: Mapping[str, tuple[Callable[[Any, str, Around], Any], Any, tuple[str, ...]]] = {
    "scaler_made": (wrapped, GradScaler, ("__init__",)),
    "scaler_device": (patched, GradScaler, ("__init__",)),
    "scaler_loaded": (wrapped, GradScaler, ("load_state_dict",)),
    "scale": (wrapped, GradScaler, ("scale",)),
    "unscale": (wrapped, GradScaler, ("unscale_",)),
    "scaler_step": (wrapped, GradScaler, ("step",)),
    "update": (wrapped, GradScaler, ("update",)),
    "optimizer_made": (patched, Optimizer, ("__init__",)),
    "schedule_made": (wrapped, LRScheduler, ("__init__",)),
    "schedule_step": (wrapped, LRScheduler, ("step",)),
    "backward": (patched, torch.autograd, ("_engine_run_backward",)),
    "autocast_made": (patched, autocast, ("__init__",)),
    "autocast_enter": (patched, autocast, ("__enter__",)),
    "autocast_exit": (patched, autocast, ("__exit__",)),
    "casts_cleared": (patched, torch, ("clear_autocast_cache",)),
    "custom_cast": (patched, torch.amp.autocast_mode, ("_cast",)),
    "module_call": (patched, torch.nn.Module, ("__call__",)),
    "cast": (patched, torch.Tensor, ("to", "float", "double", "type", "type_as")),
    "attention": (lifted, torch.nn.functional, ("scaled_dot_product_attention",)),
    "rms_norm": (lifted, torch.nn.functional, ("rms_norm",)),
    "dropout": (lifted, torch._VF, ("dropout", "dropout_")),
    "recurrence": (lifted, torch._VF, (
        "lstm", "gru", "rnn_tanh", "rnn_relu",
        "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell",
    )),
    "thread_started": (patched, threading.Thread, ("start",)),
    "submitted": (patched, ThreadPoolExecutor, ("submit",)),
    "profiler_prepared": (patched, autograd_profiler, ("_prepare_profiler",)),
    "profiler_enabled": (patched, autograd_profiler, ("_enable_profiler",)),
}  # fmt: skip

# Work that no dispatch mode sees: its name, and the module, class and method that launch it.
OUT_OF_SIGHT = (
    ("a CUDA graph", "torch.cuda.graphs", "CUDAGraph", "replay"),
    ("a Triton kernel", "triton.runtime.jit", "JITFunction", "run"),
)


@contextmanager
def subscribed(**around: Around) -> Iterator[None]:
    """Call each subscriber around its event, for as long as the block runs.

    The events are ``scaler_made``, its base class's ``scaler_device``, ``scaler_loaded``,
    ``scale``, ``unscale``, ``scaler_step`` and ``update`` of GradScalers, ``optimizer_made``,
    ``schedule_made`` and ``schedule_step`` of learning rate schedulers, ``backward``,
    ``autocast_made``, ``autocast_enter`` and ``autocast_exit``, ``casts_cleared`` from autocast's
    cache, the ``custom_cast`` of a custom function's inputs, ``module_call``, a tensor's ``cast``,
    ``attention``, ``rms_norm``, ``dropout`` and the ``recurrence`` of a recurrent layer or cell,
    ``thread_started``, work that is ``submitted`` to a pool of threads, and ``profiler_prepared``
    and ``profiler_enabled``. For an optimizer's steps see `OptimizerSteps`.
    """
    with ExitStack() as stack:
        for event, subscriber in around.items():
            how, owner, names = _EVENTS[event]
            for name in names:
                stack.enter_context(how(owner, name, subscriber))
        yield


def unsubscribe_all() -> None:
    """End what is still subscribed, although the block is over: a signal raised where it began."""
    take_off_all()


@contextmanager
def launches(told: Callable[[str], None]) -> Iterator[None]:
    """Call `told` with the kind of each launch that bypasses the dispatcher.

    The kinds are ``"a CUDA graph"`` and ``"a Triton kernel"``.
    """
    with ExitStack() as stack:
        for what, module, cls, method in OUT_OF_SIGHT:
            owner = getattr(sys.modules.get(module), cls, None)
            if owner is not None:
                stack.enter_context(patched(owner, method, _telling(told, what)))
        yield


def _telling(told: Callable[[str], None], what: str) -> Around:
    def around(original: Any, *args: Any, **kwargs: Any) -> Any:
        told(what)
        return original(*args, **kwargs)

    return around


@contextmanager
def custom_functions(around: Callable[[type], Any]) -> Iterator[None]:
    """Enter ``around(cls)`` around each call of a custom autograd function that is not torch's."""
    own = vars(torch.autograd.Function)["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        called = own.__get__(None, cls)
        if cls.__module__.partition(".")[0] == "torch":
            return called(*args, **kwargs)
        with around(cls):
            return called(*args, **kwargs)

    with replaced(torch.autograd.Function, "apply", classmethod(apply)):
        yield


Closure = Callable[..., Any]
Told = Callable[[Any, dict[str, Any]], None]


def _unchanged(_: Any, closure: Closure | None) -> Closure | None:
    return closure


def _nothing(*_: Any) -> None: ...


class OptimizerSteps:
    """Reports the steps of all optimizers, for as long as it is entered.

    A step that an optimizer calls within its own step, such as its parent class's, is part of it.

    Args:
        before: is called with the optimizer and its keyword arguments once its gradients are there.
            If the step was given a closure, that is after the closure's first call.
        after: is called with the optimizer at the end of the step.
        begins: is called first, with the optimizer and its closure or None. It returns the closure
            to go on with.
        again: is called like `before`, after each further call of the closure.
    """

    def __init__(
        self,
        before: Told = _nothing,
        after: Callable[[Any], None] = _nothing,
        begins: Callable[[Any, Closure | None], Closure | None] = _unchanged,
        again: Told = _nothing,
    ) -> None:
        self._before, self._after, self._begins, self._again = before, after, begins, again
        self._running: dict[Optimizer, _Running] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> OptimizerSteps:
        self._hooks = [
            register_optimizer_step_pre_hook(self._enter_step),
            register_optimizer_step_post_hook(self._leave_step),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._running.clear()

    @property
    def at_work(self) -> bool:
        """Whether an optimizer is doing its own work, rather than running its closure."""
        return self.working is not None

    @property
    def working(self) -> Optimizer | None:
        """The optimizer that is doing its own work; None if there is none."""
        optimizer = next(reversed(self._running), None)
        in_closure = optimizer is not None and self._running[optimizer].in_closure
        return None if in_closure else optimizer

    def _enter_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        if _is_part_of_its_own_step(optimizer):
            return None
        self._running.pop(optimizer, None)  # a step that raised has not ended
        given = kwargs.get("closure", args[1] if len(args) > 1 else None)
        closure = self._begins(optimizer, given if callable(given) else None)
        running = self._running[optimizer] = _Running()
        if closure is None:
            self._tell(running, optimizer, kwargs)
            return None
        closure = self._told_of(running, closure, optimizer, kwargs)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": closure}
        return (args[0], closure, *args[2:]), kwargs

    def _leave_step(self, optimizer: Optimizer, _: Any, kwargs: Any) -> None:
        if _is_part_of_its_own_step(optimizer):
            return
        running = self._running.pop(optimizer, None)
        if running is None:
            return
        if not running.told:  # it has a closure but never called it
            self._tell(running, optimizer, kwargs)
        self._after(optimizer)

    def _tell(self, running: _Running, optimizer: Optimizer, kwargs: Any) -> None:
        tell = self._again if running.told else self._before
        running.told = True
        tell(optimizer, kwargs)

    def _told_of(
        self, running: _Running, closure: Closure, optimizer: Optimizer, given: Any
    ) -> Closure:
        @wraps(closure)
        def call(*args: Any, **kwargs: Any) -> Any:
            running.in_closure = True
            try:
                loss = closure(*args, **kwargs)
            finally:
                running.in_closure = False
            self._tell(running, optimizer, given)
            return loss

        return call


@dataclass
class _Running:
    """A step that has begun and not yet ended."""

    told: bool = False
    in_closure: bool = False


_STEP = Optimizer.profile_hook_step(_nothing).__code__  # the code that calls the hooks


def _is_part_of_its_own_step(optimizer: Optimizer) -> bool:
    """Return whether a hook was called for a step within the same optimizer's step.

    The stack is searched, since no hook is called when a step raises: a record of steps that began
    would not know that they ended.
    """
    frame = sys._getframe(2).f_back  # the caller of what called the hook
    while frame is not None:
        if frame.f_code is _STEP and frame.f_locals["self"] is optimizer:
            return True
        frame = frame.f_back
    return False
