"""Tell of an exception where in torch it was raised, and in which dtypes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode, resolve_name

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.dispatch import DispatchMode
from pytest_amp.lab.watch.flops import operator_name
from pytest_amp.lab.watch.source import is_the_users
from pytest_amp.lab.watch.tensors import dtype_name, floats

__tracebackhide__ = unless_our_bug


class Met(NamedTuple):
    """What raised, and the dtypes that it was given.

    Attributes:
        op: the operator's name, or that of torch's function.
        dtypes: the dtypes of its floating point arguments, in their order, each once.
        message: the exception's message.
    """

    op: str | None = None
    dtypes: tuple[str, ...] = ()
    message: str = ""


class LastRaised:
    """Notes each operator and each function of torch that raises while `watching`.

    Operators alone would not do: autocast itself, and conversions such as `Tensor.numpy`, raise
    before any operator runs. Messages are kept, not exceptions, whose tracebacks hold tensors.
    """

    def __init__(self) -> None:
        self._raised: list[Met] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note what raises inside; compiled code runs eagerly."""
        with torch.compiler.set_stance("force_eager"), _Functions(self), _Operators(self):
            yield

    def of(self, error: BaseException) -> Met:
        """Return the innermost call that raised this exception, or one that it was made from."""
        messages = set()
        each: BaseException | None = error
        while each is not None:
            messages.add(str(each))
            each = each.__cause__ or each.__context__
        return next((met for met in self._raised if met.message in messages), Met())

    def note(self, op: str | None, given: Any, error: Exception) -> None:
        """Note one call that raised."""
        dtypes = dict.fromkeys(dtype_name(tensor.dtype) for tensor in floats(given))
        self._raised.append(Met(op, tuple(dtypes), str(error)))


class _Operators(DispatchMode):
    def __init__(self, record: LastRaised) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._record = record

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except Exception as error:
            self._record.note(operator_name(func), (args, kwargs), error)
            raise


class _Functions(TorchFunctionMode):
    def __init__(self, record: LastRaised) -> None:
        super().__init__()
        self._record = record

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except Exception as error:
            self._record.note(resolve_name(func), (args, kwargs), error)
            raise


def custom_function(error: BaseException) -> str | None:
    """Return the custom autograd function, not torch's, in whose code an exception was raised."""
    written = _code_of_functions()
    found = None
    for frame, _ in walk_tb(error.__traceback__):
        code = frame.f_code
        if code in written:
            first = "".join(code.co_varnames[:1])
            context = frame.f_locals.get(first)  # it knows an inheriting class
            found = getattr(context, "_forward_cls", written[code]).__name__
    return found


def _code_of_functions() -> dict[CodeType, type]:
    """Return the custom functions that are not torch's, by the code that they are written in.

    From torch 2.14 on no frame of torch's own shows whose forward pass it is that runs.
    """
    return {
        inspect.unwrap(method.__func__).__code__: function
        for function in _below(torch.autograd.Function)
        if function.__module__.partition(".")[0] != "torch"
        for method in vars(function).values()
        if isinstance(method, staticmethod) and inspect.isfunction(method.__func__)
    }


def _below(cls: type) -> Iterator[type]:
    each: type
    for each in type.__subclasses__(cls):
        yield each
        yield from _below(each)


def is_an_assertion(error: BaseException) -> bool:
    """Return whether the exception is an assertion of the user's own, or of a package for testing.

    What torch or an installed library asserts of its arguments is an exception like any other.
    """
    if not isinstance(error, AssertionError):
        return False
    *_, (innermost, _) = walk_tb(error.__traceback__)
    module = str(innermost.f_globals.get("__name__")).split(".")
    return is_the_users(innermost.f_code.co_filename) or not _TESTING.isdisjoint(module)


_TESTING = {"testing", "unittest"}
