"""Record what a step draws at random, and the rates of its dropout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.fingerprint import digest_in_any_dtype
from pytest_amp.lab.watch.source import location
from pytest_amp.lab.watch.tensors import Tensors, dtype_name, tensors_in

__tracebackhide__ = unless_our_bug


class Draws:
    """Records the operators that draw random numbers. It is told of each of them.

    Attributes:
        dtypes: the dtypes that numbers were drawn in, or for.
        digests: a digest of what each call drew.
        places: the user's line of each call.
        rates: the probabilities with which dropout drops elements.
        dropout_at: the user's line of the first dropout.
    """

    def __init__(self) -> None:
        self.dtypes: set[str] = set()
        self.digests: list[str] = []
        self.places: list[str | None] = []
        self.rates: set[float] = set()
        self.dropout_at: str | None = None

    def note(
        self, func: Any, args: Any, kwargs: Any, inputs: Tensors, outputs: Tensors, out: Any
    ) -> None:
        """Take note of an operator that draws, with its floating point inputs and outputs."""
        self.dtypes.update(dtype_name(t.dtype) for t in (*outputs, *inputs))
        self.digests.append(_drawn(out))
        self.places.append(location())
        rates = list(_dropout_rate(func, args, kwargs))
        self.rates.update(rates)
        if rates:
            self.dropout_at = self.dropout_at or self.places[-1]


def may_draw(func: Any) -> bool:
    """Return whether an operator can draw random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())


def draws(func: Any, args: Any, kwargs: Any) -> bool:
    """Return whether a call of such an operator does; fused attention without dropout does not."""
    for index, argument in enumerate(func._schema.arguments):
        if argument.name in ("dropout_p", "dropout"):
            given = args[index] if index < len(args) else kwargs.get(argument.name)
            return bool(argument.default_value if given is None else given)
    return True


def _dropout_rate(func: Any, args: Any, kwargs: Any) -> Iterator[float]:
    """Yield the probability with which the call drops elements, if it draws a mask of them.

    torch leaves an argument out that is its default.
    """
    for index, argument in enumerate(func._schema.arguments):
        if argument.name in ("dropout_p", "dropout", "p"):
            named = kwargs.get(argument.name, argument.default_value)
            given = args[index] if index < len(args) else named
            if isinstance(given, float):
                keeps = "bernoulli" in func._schema.name
                yield round(1 - given if keeps else given, 6)


def _drawn(out: Any) -> str:
    """Digest what was drawn, by value and place; a 0/1 mask gets the same digest in any dtype."""
    tensors = tensors_in(out)
    masks = [tensor for tensor in tensors if tensor.dtype is torch.bool]
    return " ".join(digest_in_any_dtype(tensor) for tensor in masks or tensors)
