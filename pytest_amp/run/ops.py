"""The operator record: one step seen through a dispatch mode, counted by dtype."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any

import torch
from torch.amp.autocast_mode import autocast
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pytest_amp.errors import none_of_ours
from pytest_amp.records import REDUCED, Operators
from pytest_amp.run.fingerprint import digest_in_any_dtype
from pytest_amp.run.modules import ModuleStack

__tracebackhide__ = none_of_ours

_HEAVY = re.compile(r"conv|mm\b|mm_|matmul|attention|linear|rnn|lstm|gru|bilinear")
_NOT_HEAVY = re.compile(r"linear_combination|upsample|prepack|reorder|weight_size|convert|_like")
_OURS = frozenset({"aten", "prim", "prims", "profiler", "c10d", "_c10d_functional", "inductor"})

# Work that no dispatch mode sees: what to call it, and the module, class and method that launch it.
_OUT_OF_SIGHT = (
    ("a CUDA graph", "torch.cuda.graphs", "CUDAGraph", "replay"),
    ("a Triton kernel", "triton.runtime.jit", "JITFunction", "run"),
)

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


class OpRecord(TorchDispatchMode):
    """Counts one step. Read `operators()` after the step.

    Compiled code is run eagerly meanwhile, since fused kernels are not seen, and since a dispatch
    mode would switch the compiling of what runs under it off for good.
    `trained` are parameters that are known beforehand; those of the modules that run are found.
    """

    supports_higher_order_operators = True

    def __init__(self, trained: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._flops: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._unknown: dict[str, None] = {}
        self._hidden: dict[str, None] = {}
        self._hidden_reduced = False
        self._random: set[str] = set()
        self._draws: list[str] = []
        self._weights = {_storage(tensor) for tensor in trained}
        self._made: set[int] = set()
        self._autocast_entered = 0
        self._reduced_weights = False

    def operators(self, hidden: str | None = None) -> Operators:
        """What was seen; `hidden` is why the rest was not."""
        return Operators(
            flops_by_dtype=dict(self._flops),
            bytes_by_dtype=dict(self._bytes),
            unknown=tuple(self._unknown),
            hidden=(*self._hidden, hidden) if hidden else tuple(self._hidden),
            hidden_reduced=self._hidden_reduced or hidden is not None,
            random_dtypes=frozenset(self._random),
            draws=tuple(self._draws),
            autocast_entered=self._autocast_entered,
            reduced_weights=self._reduced_weights,
        )

    @contextmanager
    def watching(self) -> Iterator[OpRecord]:
        """Record what runs inside."""
        with ExitStack() as stack:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(self._watching_autocast())
            for what, module, cls, method in _OUT_OF_SIGHT:
                stack.enter_context(self._noting(what, module, cls, method))
            stack.enter_context(ModuleStack(self._note_weights))
            stack.enter_context(self)
            yield self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inputs = _floats((args, kwargs))
        outputs = _floats(out)
        self._count_flops(func, args, kwargs, inputs, outputs, out)
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
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        inputs: list[torch.Tensor],
        outputs: list[torch.Tensor],
        out: Any,
    ) -> None:
        packet = getattr(func, "_overloadpacket", func)  # a higher-order operator has none
        name = operator_name(func)
        formula = flop_registry.get(packet)
        if formula is not None:
            count = formula(*args, **kwargs, out_val=out)
        elif name in _MORE:
            count = _MORE[name](*args, **kwargs)
        else:
            if inputs and _is_heavy(name):
                self._unknown[name] = None
                self._hidden_reduced |= any(_is_reduced(t) for t in (*inputs, *outputs))
            return
        if not inputs:
            return
        self._flops[dtype_name(inputs[0].dtype)] += int(count)
        if _is_reduced(inputs[0]):
            self._reduced_weights |= any(map(self._is_weight, filter(_is_reduced, inputs)))

    def _is_weight(self, tensor: torch.Tensor) -> bool:
        """Where neither modules nor optimizers tell, what was there before the step counts."""
        storage = _storage(tensor)
        return storage in self._weights if self._weights else storage not in self._made

    def _note_weights(self, module: torch.nn.Module) -> None:
        held = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        self._weights.update(map(_storage, held))

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
    def _noting(self, what: str, module: str, cls: str, method: str) -> Iterator[None]:
        """Note that work was launched past the dispatcher, where that module is loaded."""
        owner: Any = getattr(sys.modules.get(module), cls, None)
        if owner is None:
            yield
            return
        original = getattr(owner, method)

        def noted(*args: Any, **kwargs: Any) -> Any:
            self._hidden[what] = None
            self._hidden_reduced = True
            return original(*args, **kwargs)

        setattr(owner, method, noted)
        try:
            yield
        finally:
            setattr(owner, method, original)


def operator_name(func: Any) -> str:
    """``aten::mm`` for any of its overloads; a higher-order operator has none."""
    packet = getattr(func, "_overloadpacket", None)
    return str(packet._qualified_op_name) if packet else f"higher_order::{func}"


def _is_reduced(tensor: torch.Tensor) -> bool:
    return dtype_name(tensor.dtype) in REDUCED


def _is_heavy(name: str) -> bool:
    namespace, _, op = name.partition("::")
    if namespace not in _OURS:
        return True
    return bool(_HEAVY.search(op)) and not _NOT_HEAVY.search(op)


def _draws(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether the call draws random numbers: fused attention, for one, may be told not to."""
    if torch.Tag.nondeterministic_seeded not in getattr(func, "tags", ()):
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
    return " ".join(digest_in_any_dtype(tensor) for tensor in masks or tensors)


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
