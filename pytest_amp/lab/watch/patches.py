"""Replace functions and methods that are not ours, and put them back; for `events` only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

from pytest_amp.errors import unless_our_bug

__tracebackhide__ = unless_our_bug


_ABSENT = object()
# What stands in an attribute's place by now, and what every such attribute was at first.
_in_place: dict[Any, tuple[Any, str]] = {}
_at_first: dict[tuple[Any, str], Any] = {}


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Put a value in place of an attribute of `owner`.

    If the user's code has put something else there by the end, that stays.
    """
    before = vars(owner).get(name, _ABSENT)
    _at_first.setdefault((owner, name), before)
    _in_place[value] = owner, name
    try:
        setattr(owner, name, value)
        yield
    finally:
        if vars(owner).get(name) is value:
            _put_back(owner, name, before)
        _in_place.pop(value, None)


def take_off_all() -> None:
    """Put back what is still replaced, as an exception from a signal may leave it."""
    for value, (owner, name) in tuple(_in_place.items()):
        if vars(owner).get(name) is value:
            _put_back(owner, name, _at_first[owner, name])
    _in_place.clear()
    _at_first.clear()


def _put_back(owner: Any, name: str, before: Any) -> None:
    if before is _ABSENT:
        delattr(owner, name)
    else:
        setattr(owner, name, before)


@contextmanager
def patched(owner: Any, name: str, around: Callable[..., Any]) -> Iterator[None]:
    """Call ``around(original, *args, **kwargs)`` in place of an attribute of `owner`."""
    original, watching = getattr(owner, name), True

    @wraps(original)  # what compiles code asks for its signature
    def call(*args: Any, **kwargs: Any) -> Any:
        if not watching:  # but somebody has kept it
            return original(*args, **kwargs)
        return around(original, *args, **kwargs)

    with replaced(owner, name, call):
        try:
            yield
        finally:
            watching = False


@contextmanager
def lifted(owner: Any, name: str, around: Callable[..., Any]) -> Iterator[None]:
    """Patch an attribute as `patched` does, but have the original in its place while that runs.

    Whoever overrides torch's functions is given the original, and compares it with the attribute.
    A call within a call is not reported.
    """
    watching = True

    def around_lifted(original: Any, *args: Any, **kwargs: Any) -> Any:
        def itself(*args: Any, **kwargs: Any) -> Any:
            if vars(owner).get(name) is not call:  # the user's code has put something over it
                return original(*args, **kwargs)
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
    depth, watching = 0, True

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            depth += 1
            try:
                if depth > 1 or not watching:
                    return original(self, *args, **kwargs)
                return around(original, self, *args, **kwargs)
            finally:
                depth -= 1

        return wrapper

    with ExitStack() as stack:
        for each in dict.fromkeys(_family(cls)):
            if method in vars(each):
                stack.enter_context(replaced(each, method, wrap(vars(each)[method])))
        try:
            yield
        finally:
            watching = False
