"""The first step of both arms, compared: gradients as optimizers see them, modules' outputs.

The fp32 arm's gradients are kept on the CPU until the amp arm's have been compared with them, of
outputs a sample. Nothing is kept of the amp arm.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.events import OptimizerSteps
from pytest_amp.lab.watch.modules import Call
from pytest_amp.lab.watch.tensors import values
from pytest_amp.observations import Gradient, ModuleOutput

__tracebackhide__ = unless_our_bug

SAMPLE = 1024


class Witness:
    """What one arm's first step computed, to be compared with the other's.

    `steps`: how many it took until all optimizers had stepped.
    """

    def __init__(self) -> None:
        self.gradients: list[torch.Tensor | None] = []
        self.parameters: list[torch.Tensor] = []
        self._shapes: list[torch.Size] = []
        self.steps = 0
        self._outputs: dict[str, torch.Tensor] = {}
        self._largest: dict[str, float] = {}

    def watching(self) -> OptimizerSteps:
        """Take the gradients of each optimizer's first step inside."""
        return OptimizerSteps(self._take_gradients)

    def let_go(self) -> None:
        """Of the arm's parameters, before another arm is built."""
        self.parameters.clear()

    def module_left(self, call: Call, output: Any) -> None:
        """Sample what a module returned from its first call."""
        if call.again or call.path in self._outputs:
            return
        leaves = filter(torch.is_tensor, pytree.tree_leaves(output))
        tensor = next((found for leaf in leaves if (found := _comparable(leaf)) is not None), None)
        if tensor is None:
            return
        with torch.no_grad():
            flat = tensor.reshape(-1)
            some = flat[:: -(-flat.numel() // SAMPLE)]
            # Copied: what follows in place, as a ReLU, changes what the module returned.
            self._outputs[call.path] = some.to("cpu", torch.float32, copy=True)
            self._largest[call.path] = float(flat.abs().amax())

    def outputs_beside(self, fp32: Witness) -> tuple[ModuleOutput, ...]:
        """This arm's outputs beside the fp32 arm's, in the order of the calls."""
        return tuple(
            ModuleOutput(path, _distance(fp32._outputs[path], ours), fp32._largest[path])
            for path, ours in self._outputs.items()
            if path in fp32._outputs and fp32._outputs[path].shape == ours.shape
        )

    def gradients_beside(self, fp32: Witness) -> tuple[Gradient, ...]:
        """This arm's gradients beside the fp32 arm's; none where the parameters do not match."""
        if self._shapes != fp32._shapes:
            return ()
        if self.steps != fp32.steps:  # one that was skipped had other data
            return ()
        pairs = list(zip(fp32.gradients, self.gradients, strict=True))
        total = math.hypot(*(float(theirs.norm()) for theirs, _ in pairs if theirs is not None))
        return tuple(
            Gradient(index, *_beside(theirs, ours), _share(theirs, total))
            for index, (theirs, ours) in enumerate(pairs)
            if theirs is not None and ours is not None and theirs.shape == ours.shape
        )

    def _take_gradients(self, optimizer: Optimizer, *_: Any) -> None:
        known = set(map(id, self.parameters))
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) not in known:
                    self.parameters.append(parameter)
                    self._shapes.append(parameter.shape)
                    self.gradients.append(seen_by(optimizer, parameter))


def seen_by(optimizer: Any, parameter: torch.Tensor) -> torch.Tensor | None:
    """The gradient as the optimizer will use it, on the CPU; None without a dense one.

    Fused optimizers divide by the loss scale themselves, which torch hands them.
    """
    given = parameter.grad
    grad = None if given is None or given.is_sparse else values(given)
    if grad is None:
        return None
    with torch.no_grad():
        scale = getattr(optimizer, "grad_scale", None)
        copied = grad.float().cpu() if scale is None else (grad / scale).float().cpu()
        return copied.clone() if copied.data_ptr() == grad.data_ptr() else copied


def _comparable(leaf: torch.Tensor) -> torch.Tensor | None:
    found = None if leaf.is_sparse else values(leaf)
    return found if found is not None and found.numel() else None


def _distance(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Relative to what is expected, over all sampled elements."""
    size = float(expected.norm())
    return float((found - expected).norm()) / size if size else 0.0


def _beside(expected: torch.Tensor, found: torch.Tensor) -> tuple[float, float, float]:
    """Cosine, ratio of norms, and the share of elements that became zero."""
    sizes = float(expected.norm()), float(found.norm())
    product = float(expected.flatten() @ found.flatten())
    cosine = product / (sizes[0] * sizes[1]) if sizes[0] and sizes[1] else math.nan
    alive = expected != 0
    zeroed = int((alive & (found == 0)).sum()) / max(1, int(alive.sum()))
    return cosine, sizes[1] / sizes[0] if sizes[0] else math.nan, zeroed


def _share(gradient: torch.Tensor, total: float) -> float:
    return float(gradient.norm()) / total if total else 0.0
