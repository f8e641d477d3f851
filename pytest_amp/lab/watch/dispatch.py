"""Dispatch modes that see every operator, including higher-order ones."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_amp.errors import unless_our_bug

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


def _given_to_the_mode(operator: Any) -> Any:
    return lambda mode, *args, **kwargs: mode.__torch_dispatch__(operator, (), args, kwargs)
