"""Record what each operator of a step's forward passes computes, to compare it between arms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.ancestry import Ancestries
from pytest_amp.lab.watch.dispatch import DispatchMode
from pytest_amp.lab.watch.events import OptimizerSteps, subscribed
from pytest_amp.lab.watch.flops import operator_name
from pytest_amp.lab.watch.modules import ModuleStack
from pytest_amp.lab.watch.source import location
from pytest_amp.lab.watch.spots import spots
from pytest_amp.lab.watch.tensors import dtype_name, storage, tensors_in
from pytest_amp.observations import Computed

__tracebackhide__ = unless_our_bug

# These move values or convert them, and compute nothing. The arms differ in how many they need.
_MOVES = frozenset(
    f"aten::{name}"
    for name in (
        "_reshape_alias", "_to_copy", "_unsafe_view", "alias", "as_strided", "clone", "contiguous",
        "copy_", "detach", "empty", "empty_like", "expand", "lift_fresh", "permute", "reshape",
        "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind",
        "unsqueeze", "view",
    )
)  # fmt: skip


class ForwardValues(DispatchMode):
    """Records the operators of forward passes, with samples of what they take and make.

    Left out are backward passes, what optimizers do, what is done to the gradients behind a
    backward pass, and what GradScalers do, since gradients and scales may differ.

    Args:
        modules: what knows the modules that are being called.

    Attributes:
        computed: the operators, in the order in which they ran.
        called: the names of all operators by the user's line that calls them, each with the module
            that it is called in; here those that only move or convert values are among them.
        uses: the user's line that first used what was there before the step, by its memory.
    """

    def __init__(self, modules: ModuleStack) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._modules = modules
        self._optimizers = OptimizerSteps()
        self._over = False
        self._scaling = False
        self._went_back = False
        self._ancestries = Ancestries()
        self.computed: list[Computed] = []
        self.called: dict[str, dict[tuple[str, str | None], None]] = {}
        self.uses: dict[int, str | None] = {}

    @contextmanager
    def watching(self) -> Iterator[ForwardValues]:
        """Record what runs inside. Compiled code has to run eagerly meanwhile."""
        with (
            subscribed(
                scale=self._around_scaler,
                unscale=self._around_scaler,
                scaler_step=self._around_scaler,
                update=self._around_scaler,
                backward=self._around_backward,
            ),
            self._optimizers,
            self,
        ):
            yield self

    def end(self) -> None:
        """Record no more."""
        self._over = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._is_elsewhere():
            return func(*args, **kwargs)
        name, line = operator_name(func), location()
        module = self._modules.path()
        if line is not None:
            self.called.setdefault(line, {})[name, module] = None
        tensors = tensors_in((args, kwargs))
        for tensor in self._ancestries.unknown(tensors):
            self.uses.setdefault(storage(tensor), line)
        ancestry = self._ancestries.of(tensors)
        given = () if name in _MOVES else tuple(map(spots, _numbers((args, kwargs))))
        out = func(*args, **kwargs)  # it may change what was sampled before
        made = tensors_in(out)
        held = set(map(storage, tensors)) if name in _MOVES else set()
        new = [each for each in made if storage(each) not in held]
        self._ancestries.extend(func, line, ancestry, new)
        if made and name not in _MOVES:
            first = made[0]
            self.computed.append(
                Computed(
                    name, _shape(first), dtype_name(first.dtype), module, line,
                    spots(first) if _is_float(first) else (), given,
                    tuple(each for each in ancestry.lines if each != line), ancestry.products,
                )
            )  # fmt: skip
        return out

    def _is_elsewhere(self) -> bool:
        return (
            self._over
            or self._scaling
            or torch._C._current_graph_task_id() != -1
            or self._optimizers.at_work
            or (self._went_back and not torch.is_grad_enabled())
            or _is_capturing()
        )

    def _around_scaler(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        before, self._scaling = self._scaling, True
        try:
            return original(*args, **kwargs)
        finally:
            self._scaling = before

    def _around_backward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        self._went_back = True
        return original(*args, **kwargs)


def _is_capturing() -> bool:
    """Return whether a CUDA graph is being captured; no value can be read meanwhile."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    nested = tensor.is_nested and tensor.layout is torch.strided  # such a tensor has no shape
    return () if nested else tuple(tensor.shape)


def _is_float(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _numbers(tree: Any) -> list[Any]:
    """Return the tensors and floats of an operator's arguments."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, (torch.Tensor, float))]
