"""Watch a step for the first operators that make inf or NaN, going forward and going backward."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils import _pytree as pytree

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.flops import operator_name
from pytest_amp.lab.watch.forward_lines import BothPasses, current_node, is_custom
from pytest_amp.lab.watch.source import location
from pytest_amp.lab.watch.tensors import dtype_name, floating, is_finite
from pytest_amp.observations import Origin

__tracebackhide__ = unless_our_bug

_ACCUMULATES = "AccumulateGrad"
# These work element by element, and torch does not tag them so.
_POINTWISE = (
    "aten::_to_copy",
    "aten::binary_cross_entropy",
    "aten::binary_cross_entropy_backward",
    "aten::huber_loss_backward",
    "aten::mse_loss_backward",
    "aten::smooth_l1_loss_backward",
)


class FirstNonfinite(BothPasses):
    """Finds the first operator whose output is further from finite than its inputs.

    NaN made from infinities counts, then, but a mask that is filled with a given -inf does not.

    Args:
        step: the step that is watched, from 0.

    Attributes:
        forward: the first one outside of backward passes.
        backward: the first one within a backward pass.
        first: the first one of all.
        kept: the first operator that added to a gradient that was not finite.
        from_finite: whether all backward passes began at finite losses.
    """

    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step
        self._called: str | None = None
        self._at: Any = None  # the last node of a backward pass that is not a cast's
        self.forward: Origin | None = None
        self.backward: Origin | None = None
        self.kept: Origin | None = None
        self.from_finite = True
        self.first: Origin | None = None

    @property
    def of_gradients(self) -> Origin | None:
        """What kept the gradients from being finite; the forward pass, if the loss was not."""
        return (self.backward or self.kept) if self.from_finite else self.forward

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._lines.note(func)
        backward = torch._C._current_graph_task_id() != -1
        if backward and not _is_cast(node := current_node()):
            self._at = node
        if (self.backward if backward else self.forward) is not None:
            return func(*args, **kwargs)
        given = _badness((args, kwargs))  # the call may change its inputs
        out = func(*args, **kwargs)
        made = _badness(out)
        if made > given:
            origin = self._origin(func, args, out, "NaN" if made == 2 else "inf")
            self.first = self.first or origin
            if backward:
                self.backward = origin
            else:
                self.forward = origin
        elif given and backward and self.kept is None and _adds_up(current_node()):
            self.kept = Origin(self._step, operator_name(func), None, self._called, phase="kept")
        return out

    def _origin(self, func: Any, args: Any, out: Any, made: Any) -> Origin:
        bad = next(t for t in pytree.tree_leaves(out) if _badness_of(t))
        node, op = current_node(), operator_name(func)
        where = Origin(
            self._step, op, self._modules.path(), location(), dtype_name(bad.dtype), made=made,
            inputs=_at_the_same_place(func, args, bad), largest=_largest(func, args),
        )  # fmt: skip
        return where if node is None else self._going_backward(where, node)

    def _going_backward(self, where: Origin, node: Any) -> Origin:
        """Return the origin with what its node was in the forward pass.

        The line in a custom function's backward pass is better than that of its call, and the node
        whose gradient is cast is better than autocast's cast.
        """
        node = self._at if _is_cast(node) and _feeds(self._at, node) else node
        place = self._lines.of(node)
        within = where.location if is_custom(node) and where.location != self._called else None
        return Origin(
            where.step,
            place.op if place else where.op,
            place.module if place else None,
            within or (place.location if place else None),
            where.dtype,
            "backward",
            node.name(),
            where.made,
            where.inputs,
            where.largest,
        )

    def _around_backward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        if torch._C._current_graph_task_id() == -1:
            self._called = location()
            self.from_finite &= not (args and _badness(args[0]))
        return original(*args, **kwargs)


def _is_cast(node: Any) -> bool:
    return node is not None and node.name().startswith("ToCopyBackward")


def _feeds(node: Any, other: Any) -> bool:
    """Return whether a node hands its gradient to the other."""
    number = other._sequence_nr()
    following = node.next_functions if node is not None else ()
    return any(each is not None and each._sequence_nr() == number for each, _ in following)


def _adds_up(node: Any) -> bool:
    return node is not None and node.name().endswith(_ACCUMULATES)


def _badness(tree: Any) -> int:
    """Return 0 if all numbers are finite, 1 if some are infinite, and 2 if some are NaN."""
    return max(map(_badness_of, pytree.tree_leaves(tree)), default=0)


def _badness_of(leaf: Any) -> int:
    if isinstance(leaf, float):
        return 2 * math.isnan(leaf) or int(math.isinf(leaf))
    if not isinstance(leaf, torch.Tensor):
        return 0
    bad = [part for part in floating(leaf) if not is_finite(part)]
    return (2 if any(part.isnan().any() for part in bad) else 1) if bad else 0


def _at_the_same_place(func: Any, args: Any, out: torch.Tensor) -> tuple[float, ...]:
    """Return the inputs at the output's first element that is not finite.

    It is empty unless the operator works element by element on plain tensors, and leaves its inputs
    as they were.
    """
    tagged = torch.Tag.pointwise in getattr(func, "tags", ())
    if not tagged and operator_name(func) not in _POINTWISE:
        return ()
    parts = floating(out)
    if _is_mutable(func) or len(parts) != 1 or parts[0].shape != out.shape:
        return ()
    place = tuple(map(int, (~torch.isfinite(parts[0])).nonzero()[0]))
    return tuple(
        number
        for leaf in pytree.tree_leaves(args)
        if (number := _element(leaf, out.shape, place)) is not None
    )


def _element(leaf: Any, shape: torch.Size, place: tuple[int, ...]) -> float | None:
    if not isinstance(leaf, torch.Tensor):
        return float(leaf) if isinstance(leaf, (int, float)) else None
    parts = floating(leaf)
    if len(parts) != 1 or parts[0].shape != leaf.shape:
        return None
    try:
        return float(parts[0].expand(shape)[place])
    except RuntimeError:  # it is of another shape
        return None


def _is_mutable(func: Any) -> bool:
    schema = getattr(func, "_schema", None)  # higher-order operators have none
    return schema is None or bool(schema.is_mutable)


def _largest(func: Any, args: Any) -> float | None:
    """Return the largest magnitude among the inputs, unless they have been changed."""
    if _is_mutable(func):
        return None
    parts = [
        part
        for leaf in pytree.tree_leaves(args)
        if isinstance(leaf, torch.Tensor)
        for part in floating(leaf)
        if part.numel()
    ]
    return max((float(part.abs().amax()) for part in parts), default=None)
