"""Watch a backward pass node by node: how much of each gradient is not zero, and its size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._mode_utils import no_dispatch

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.forward_lines import BothPasses, Place, backward_of, is_custom
from pytest_amp.lab.watch.source import first_line_of
from pytest_amp.lab.watch.spots import spots
from pytest_amp.lab.watch.tensors import dtype_name, values
from pytest_amp.observations import Sample

__tracebackhide__ = unless_our_bug

Key = tuple[str, str | None, int]


class Seen(NamedTuple):
    """A gradient.

    Attributes:
        alive: the share of its elements that are not zero.
        size: the median magnitude of these; 0 if there are none.
        sample: what `spots` returns for it.
        dtype: its dtype.
    """

    alive: float
    size: float
    sample: Sample = ()
    dtype: str = ""


class NodeGradients(BothPasses):
    """Records what each node of the first backward passes was given, and what it made.

    Attributes:
        places: where in the forward pass the nodes come from; None if that was not seen.
        given: what each node was given, in the order in which they ran.
        made: what each node made of it, None for an input that needs no gradient.
        root: the magnitude of the first loss that a backward pass began at.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counts: Counter[tuple[str, str | None]] = Counter()
        self.places: dict[Key, Place | None] = {}
        self.given: dict[Key, list[Seen | None]] = {}
        self.made: dict[Key, list[Seen | None]] = {}
        self.root: float | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._lines.note(func)
        return func(*args, **(kwargs or {}))

    def _around_backward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        roots = [root for root in (args[0] if args else ()) if torch.is_tensor(root)]
        if self.root is None and roots and roots[0].numel() == 1:
            self.root = abs(float(roots[0].detach()))
        hooks = [node.register_hook(self._hook(node)) for node in _nodes(roots)]
        try:
            return original(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, node: Any) -> Any:
        place, name = self._lines.of(node), node.name()
        written = first_line_of(backward_of(node)) if place and is_custom(node) else None

        def after(made: Sequence[Any], given: Sequence[Any]) -> None:
            where = name, place.location if place else None
            self._counts[where] += 1
            key = (*where, self._counts[where])
            self.places[key] = place._replace(location=written) if place and written else place
            with torch.no_grad(), no_dispatch():
                self.given[key], self.made[key] = list(map(_seen, given)), list(map(_seen, made))

        return after


def _nodes(roots: Sequence[torch.Tensor]) -> list[Any]:
    """Return the nodes of the roots' graph, without those that add to parameters' gradients."""
    found: dict[Any, None] = {}
    waiting = [root.grad_fn for root in roots]
    while waiting:
        node: Any = waiting.pop()
        if node is not None and node not in found and not hasattr(node, "variable"):
            found[node] = None
            waiting.extend(each for each, _ in node.next_functions)
    return list(found)


def _seen(gradient: Any) -> Seen | None:
    held = values(gradient) if torch.is_tensor(gradient) and not gradient.is_sparse else None
    if held is None or not held.numel():
        return None
    alive = held[held != 0].float().abs()
    size = float(alive.median()) if alive.numel() else 0.0
    return Seen(alive.numel() / held.numel(), size, spots(held), dtype_name(held.dtype))
