"""Replace functions and methods that are not ours, and put them back; for `events` only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

from pytest_amp.errors import unless_our_bug

__tracebackhide__ = unless_our_bug


@contextmanager
def patched(owner: Any, name: str, around: Callable[..., Any]) -> Iterator[None]:
    """Call ``around(original, *args, **kwargs)`` in place of an attribute of `owner`."""
    original, is_its_own = getattr(owner, name), name in vars(owner)

    @wraps(original)  # what compiles code asks for its signature
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


@contextmanager
def lifted(owner: Any, name: str, around: Callable[..., Any]) -> Iterator[None]:
    """Patch an attribute as `patched` does, but have the original in its place while that runs.

    Whoever overrides torch's functions is given the original, and compares it with the attribute.
    A call within a call is not reported.
    """
    watching = True

    def around_lifted(original: Any, *args: Any, **kwargs: Any) -> Any:
        def itself(*args: Any, **kwargs: Any) -> Any:
            setattr(owner, name, original)
            try:
                return original(*args, **kwargs)
            finally:
                if watching:  # a thread may go on
                    setattr(owner, name, call)

        return around(itself, *args, **kwargs)

    with patched(owner, name, around_lifted):
        call = getattr(owner, name)
        try:
            yield
        finally:
            watching = False


def _family(cls: Any) -> Iterable[type]:
    yield cls
    children: list[type] = cls.__subclasses__()
    for child in children:
        yield from _family(child)


@contextmanager
def wrapped(cls: type, method: str, around: Callable[..., Any]) -> Iterator[None]:
    """Wrap `method` wherever the class or a subclass defines it; nested calls are not reported."""
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
