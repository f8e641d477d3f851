"""Watching functions and methods that are not ours, and putting them back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from pytest_amp.errors import none_of_ours

__tracebackhide__ = none_of_ours


@contextmanager
def patched(owner: Any, name: str, around: Callable[..., Any]) -> Iterator[None]:
    """Call `around(original, *args)` in its place."""
    original = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def optimizer_steps(before: Callable[..., None], after: Callable[..., None]) -> Iterator[None]:
    """Call these around the steps of all optimizers."""
    hooks = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


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
