"""The operator record: one step seen through a dispatch mode, counted by dtype."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from math import prod
from typing import Any

import torch
from torch.amp.autocast_mode import autocast
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pytest_amp.errors import none_of_ours
from pytest_amp.records import REDUCED, Operators
from pytest_amp.run.fingerprint import placed_digest

__tracebackhide__ = none_of_ours

_HEAVY = re.compile(r"conv|mm\b|mm_|matmul|attention|linear|rnn|lstm|gru|bilinear")
_NOT_HEAVY = re.compile(r"linear_combination|upsample|prepack|reorder|weight_size|convert|_like")
_OURS = frozenset({"aten", "prim", "prims", "profiler", "c10d", "_c10d_functional", "inductor"})

Formula = Callable[..., int]


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Two products: (queries x keys), and (weights x values)."""
    *batch, queries, dim = query.shape
    return int(2 * prod(batch) * queries * key.shape[-2] * (dim + value.shape[-1]))


def _attention_backward(_grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Five products where the forward pass has two: its scores are computed again."""
    return 5 * _attention(query, key, value) // 2


def _linear(inputs: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * int(inputs.numel()) * int(weight.shape[0])


def _linear_backward(inputs: Any, _grad: Any, weight: Any, wanted: Any) -> int:
    """One product per gradient that is wanted: the input's and the weight's."""
    return int(sum(wanted[:2])) * _linear(inputs, weight)


def _matrix_vector(matrix: Any, *_: Any, **__: Any) -> int:
    return 2 * int(matrix.numel())


def _rnn_layer(inputs: Any, weight: Any, recurrent: Any, *_: Any, **__: Any) -> int:
    """Per element of the sequence: the input's and the state's product with their weights."""
    elements = int(inputs.numel()) // int(inputs.shape[-1])
    return 2 * elements * (int(weight.numel()) + int(recurrent.numel()))


# What torch's own registry leaves out, seen on the CPU and with nested tensors.
_MORE: dict[str, Formula] = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "aten::linear": _linear,
    "aten::linear_backward": _linear_backward,
    "aten::mkldnn_rnn_layer": _rnn_layer,
    "aten::mkldnn_rnn_layer_backward": lambda *args, **kw: 2 * _rnn_layer(*args, **kw),
    "aten::mv": _matrix_vector,
    "aten::dot": _matrix_vector,
    "aten::vdot": _matrix_vector,
}


def dtype_name(dtype: torch.dtype) -> str:
    """``float16``"""
    return str(dtype).removeprefix("torch.")


def eager_if_needed() -> AbstractContextManager[Any]:
    """Where a dispatch mode would switch compiled code off for good, inspect it eagerly instead.

    Torch releases that let a mode declare itself infrastructure leave compiled code alone.
    """
    if hasattr(TorchDispatchMode, "ignore_compile_internals"):
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


class Watching(TorchDispatchMode):
    """A dispatch mode that looks on and changes nothing, compiled code included."""

    @classmethod
    def is_infra_mode(cls) -> bool:
        return True

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True


class OpRecord(Watching):
    """Counts one step. Read `operators()` after the step."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._flops: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._unknown: dict[str, None] = {}
        self._random: set[str] = set()
        self._draws: list[str] = []
        self._made: set[int] = set()
        self._compiled = False
        self._autocast_entered = 0
        self._reduced_weights = False

    def operators(self) -> Operators:
        return Operators(
            flops_by_dtype=dict(self._flops),
            bytes_by_dtype=dict(self._bytes),
            unknown=tuple(self._unknown),
            compiled=self._compiled,
            random_dtypes=frozenset(self._random),
            draws=tuple(self._draws),
            autocast_entered=self._autocast_entered,
            reduced_weights=self._reduced_weights,
        )

    @contextmanager
    def watching(self) -> Iterator[OpRecord]:
        """Record what runs inside."""
        with ExitStack() as stack:
            stack.enter_context(eager_if_needed())
            stack.enter_context(self._watching_autocast())
            stack.enter_context(self._watching_compiled())
            stack.enter_context(self)
            yield self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inputs = _floats((args, kwargs))
        outputs = _floats(out)
        self._count_flops(func, args, kwargs, out, inputs)
        if _draws(func, args, kwargs):
            self._random.update(dtype_name(t.dtype) for t in (*outputs, *inputs))
            self._draws.append(_drawn(out))
        known = {_storage(tensor) for tensor in inputs}
        for tensor in outputs:
            storage = _storage(tensor)
            if storage not in known:
                self._made.add(storage)
                self._bytes[dtype_name(tensor.dtype)] += tensor.numel() * tensor.element_size()
        return out

    def _count_flops(
        self, func: Any, args: Any, kwargs: Any, out: Any, inputs: list[torch.Tensor]
    ) -> None:
        packet = func._overloadpacket
        name = str(packet._qualified_op_name)
        formula = flop_registry.get(packet)
        if formula is not None:
            count = formula(*args, **kwargs, out_val=out)
        elif name in _MORE:
            count = _MORE[name](*args, **kwargs)
        else:
            if inputs and _is_heavy(name):
                self._unknown[name] = None
            return
        if not inputs:
            return
        dtype = dtype_name(inputs[0].dtype)
        self._flops[dtype] += int(count)
        if dtype in REDUCED and any(
            _storage(t) not in self._made for t in inputs if dtype_name(t.dtype) == dtype
        ):
            self._reduced_weights = True

    @contextmanager
    def _watching_autocast(self) -> Iterator[None]:
        enter = autocast.__enter__

        def noted(region: Any) -> Any:
            if region._enabled and dtype_name(region.fast_dtype) in REDUCED:
                self._autocast_entered += 1
            return enter(region)  # type: ignore[no-untyped-call]

        autocast.__enter__ = noted  # type: ignore[method-assign]
        try:
            yield
        finally:
            autocast.__enter__ = enter  # type: ignore[method-assign]

    @contextmanager
    def _watching_compiled(self) -> Iterator[None]:
        """Each call of compiled code turns Dynamo's callback on; what follows is bound earlier."""
        dynamo: Any = sys.modules.get("torch._dynamo.eval_frame")
        if dynamo is None or not hasattr(dynamo, "_maybe_set_eval_frame"):
            yield
            return
        turn_on = dynamo._maybe_set_eval_frame

        def noted(callback: Any) -> Any:
            self._compiled |= callback is not None
            return turn_on(callback)

        dynamo._maybe_set_eval_frame = noted
        try:
            yield
        finally:
            dynamo._maybe_set_eval_frame = turn_on


def _is_heavy(name: str) -> bool:
    namespace, _, op = name.partition("::")
    if namespace not in _OURS:
        return True
    return bool(_HEAVY.search(op)) and not _NOT_HEAVY.search(op)


def _draws(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether the call draws random numbers: fused attention, for one, may be told not to."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    for index, argument in enumerate(func._schema.arguments):
        if argument.name in ("dropout_p", "dropout"):
            given = args[index] if index < len(args) else kwargs.get(argument.name)
            return bool(argument.default_value if given is None else given)
    return True


def _drawn(out: Any) -> str:
    """What was drawn, by value and place, and the same for a 0/1 mask in any dtype."""
    tensors = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, torch.Tensor)]
    masks = [tensor for tensor in tensors if tensor.dtype is torch.bool]
    return " ".join(placed_digest(tensor) for tensor in masks or tensors)


def _floats(tree: Any) -> list[torch.Tensor]:
    return [
        leaf
        for leaf in pytree.tree_leaves(tree)
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
    ]


def _storage(tensor: torch.Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse and nested tensors have none of their own
        return id(tensor)
