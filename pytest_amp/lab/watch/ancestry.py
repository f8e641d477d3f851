"""Remember which of the user's lines made each tensor of a forward pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.flops import is_product
from pytest_amp.lab.watch.tensors import is_reduced, storage

__tracebackhide__ = unless_our_bug


class Ancestry(NamedTuple):
    """Where some tensors come from.

    Attributes:
        lines: the lines that made them since the last matrix products, the latest first.
        products: the lines of these products, as far as they ran in float16 or bfloat16.
    """

    lines: tuple[str, ...] = ()
    products: tuple[str, ...] = ()


class Ancestries:
    """Keeps the ancestry of each tensor by its storage."""

    def __init__(self) -> None:
        self._known: dict[int, Ancestry] = {}

    def of(self, tensors: Iterable[torch.Tensor]) -> Ancestry:
        """Return the ancestry of all these tensors together."""
        known = [self._known.get(storage(tensor), Ancestry()) for tensor in tensors]
        return Ancestry(
            _once(line for each in known for line in each.lines),
            _once(line for each in known for line in each.products),
        )

    def unknown(self, tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """Return those of the tensors that no operator has made."""
        return [tensor for tensor in tensors if storage(tensor) not in self._known]

    def extend(
        self, func: Any, line: str | None, given: Ancestry, made: Iterable[torch.Tensor]
    ) -> None:
        """Note that an operator made tensors, on a line, of tensors with that ancestry."""
        here = () if line is None else (line,)
        for tensor in made:
            if is_product(func):
                ancestry = Ancestry((), here if is_reduced(tensor) else ())
            else:
                ancestry = Ancestry(_once((*here, *given.lines)), given.products)
            self._known[storage(tensor)] = ancestry


def _once(lines: Iterable[str]) -> tuple[str, ...]:
    return (*dict.fromkeys(lines),)
