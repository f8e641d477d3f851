"""Watching functions and methods that are not ours, and putting them back."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from pytest_amp.errors import none_of_ours

__tracebackhide__ = none_of_ours


@contextmanager
def patched(owner: Any, name: str, around: Callable[..., Any]) -> Iterator[None]:
    """Call `around(original, *args)` in its place."""
    original, is_its_own = getattr(owner, name), name in vars(owner)

    def call(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(owner, name, call)
    try:
        yield
    finally:
        if is_its_own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)


Closure = Callable[..., Any]
Told = Callable[[Any, dict[str, Any]], None]


def _unchanged(_: Any, closure: Closure | None) -> Closure | None:
    return closure


def _nothing(*_: Any) -> None: ...


class OptimizerSteps:
    """Within it, tells of the steps of all optimizers.

    `begins` is told of an optimizer and its closure, if it was given one, before anything else, and
    returns the closure to go on with. `before` is told of its gradients, which a closure brings:
    behind the closure's first call then, `again` behind each further one. `after` ends a step.
    A step that an optimizer's own calls, such as that of its parent class, is part of it.
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
        """Whether an optimizer is at its own work, and not in its closure."""
        return bool(self._running) and not next(reversed(self._running.values())).in_closure

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
        if not running.told:  # it has a closure, and never called it
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
    """A step that has begun."""

    told: bool = False
    in_closure: bool = False


_STEP = Optimizer.profile_hook_step(_nothing).__code__  # what calls the hooks


def _is_part_of_its_own_step(optimizer: Optimizer) -> bool:
    """Asked by a hook; told from the stack itself, since no hook tells of a step that raised."""
    frame = sys._getframe(2).f_back  # the caller of what called the hook
    while frame is not None:
        if frame.f_code is _STEP and frame.f_locals["self"] is optimizer:
            return True
        frame = frame.f_back
    return False


@contextmanager
def custom_functions(around: Callable[[type], Any]) -> Iterator[None]:
    """Tell of each call of a custom autograd function that is not torch's own."""
    own = vars(torch.autograd.Function)["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if cls.__module__.partition(".")[0] == "torch":
            return own.__func__(cls, *args, **kwargs)
        with around(cls):
            return own.__func__(cls, *args, **kwargs)

    function: Any = torch.autograd.Function
    function.apply = classmethod(apply)
    try:
        yield
    finally:
        function.apply = own


def _family(cls: Any) -> Iterable[type]:
    yield cls
    children: list[type] = cls.__subclasses__()
    for child in children:
        yield from _family(child)


@contextmanager
def wrapped(cls: type, method: str, around: Callable[..., Any]) -> Iterator[None]:
    """Wrap `method` wherever the class family defines it; only the outermost call is told."""
    depth = 0

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            depth += 1
            try:
                if depth > 1:
                    return original(self, *args, **kwargs)
                return around(original, self, *args, **kwargs)
            finally:
                depth -= 1

        return wrapper

    with ExitStack() as stack:
        for each in dict.fromkeys(_family(cls)):
            if method in vars(each):
                original = vars(each)[method]
                stack.callback(setattr, each, method, original)
                setattr(each, method, wrap(original))
        yield
