"""Dispatch modes that see every operator, including higher-order ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode, _push_mode

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.tensors import tensors_in

__tracebackhide__ = unless_our_bug


class DispatchMode(TorchDispatchMode):
    """A mode that sees higher-order operators, such as flex_attention, in every version of torch.

    Up to 2.6, torch looks each of these operators up by the mode's class, and raises if it finds
    nothing.
    """

    supports_higher_order_operators = True

    def __enter__(self) -> Any:
        if not hasattr(TorchDispatchMode, "supports_higher_order_operators"):
            for operator in vars(torch._ops)["_higher_order_ops"].values():
                operator.python_key_table.setdefault(type(self), _given_to_the_mode(operator))
        return super().__enter__()  # type: ignore[no-untyped-call]

    @contextmanager
    def in_this_thread(self) -> Iterator[None]:
        """Enter the mode in one more thread, while another thread is in it.

        To enter it there as usual would set flags of torch's that all threads share, and put them
        back to what they were in the midst of the other thread's work.
        """
        _push_mode(self)
        try:
            yield
        finally:
            _pop_mode()


def _given_to_the_mode(operator: Any) -> Any:
    return lambda mode, *args, **kwargs: mode.__torch_dispatch__(operator, (), args, kwargs)


def written_into(func: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """Return the arguments that the operator changes in place."""
    schema = getattr(func, "_schema", None)  # higher-order operators have none
    found = []
    for index, argument in enumerate(schema.arguments if schema else ()):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[index] if index < len(args) else kwargs.get(argument.name)
            found += tensors_in(given)
    return found
