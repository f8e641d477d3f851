"""Compare the first step of both arms: gradients as optimizers see them, and modules' outputs.

The fp32 arm's gradients are kept on the CPU until the amp arm's have been compared with them. Of
outputs only a sample is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils import _pytree as pytree
from torch.utils._mode_utils import no_dispatch

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.events import OptimizerSteps
from pytest_amp.lab.watch.forward_values import ForwardValues
from pytest_amp.lab.watch.modules import Call, ModuleStack
from pytest_amp.lab.watch.tensors import storage, values
from pytest_amp.observations import Gradient, ModuleOutput

__tracebackhide__ = unless_our_bug

SAMPLE = 1024


class Witness:
    """What one arm's first step computed, to be compared with the other arm's.

    Attributes:
        gradients: the trained parameters' gradients at the first steps of their optimizers, on the
            CPU.
        parameters: those parameters, until `let_go`.
        steps: how many steps it took until all optimizers had stepped.
        values: the first step's forward passes.
    """

    def __init__(self) -> None:
        self.gradients: list[torch.Tensor | None] = []
        self.parameters: list[torch.Tensor] = []
        self._shapes: list[torch.Size] = []
        self.steps = 0
        self._outputs: dict[str, torch.Tensor] = {}
        self._largest: dict[str, float] = {}

    @contextmanager
    def watching(self, modules: ModuleStack) -> Iterator[None]:
        """Take the gradients at each optimizer's first step inside, and record the first step.

        Args:
            modules: what knows the modules that are being called.
        """
        with OptimizerSteps(self._take_gradients), ForwardValues(modules).watching() as values:
            self.values = values
            yield

    def place_of(self, parameter: torch.Tensor) -> str | None:
        """Return the user's line that first used the parameter in the first step."""
        return self.values.uses.get(storage(parameter))

    def step_ended(self) -> None:
        """Count a step, and record no more operators."""
        self.steps += 1
        self.values.end()

    def let_go(self) -> None:
        """Release the arm's parameters, before another arm is built."""
        self.parameters.clear()

    def module_left(self, call: Call, output: Any) -> None:
        """Sample what a module returned from its first call."""
        if call.again or call.path in self._outputs:
            return
        leaves = filter(torch.is_tensor, pytree.tree_leaves(output))
        with no_dispatch():
            found = [_comparable(leaf) for leaf in leaves]
        tensor = next((each for each in found if each is not None), None)
        if tensor is None:
            return
        with torch.no_grad(), no_dispatch():
            flat = tensor.reshape(-1)
            some = flat[:: -(-flat.numel() // SAMPLE)]
            # Copied, since an operator that follows in place, such as a ReLU, changes the output.
            self._outputs[call.path] = some.to("cpu", torch.float32, copy=True)
            self._largest[call.path] = float(flat.abs().amax())

    def outputs_beside(self, fp32: Witness) -> tuple[ModuleOutput, ...]:
        """Compare this arm's outputs with the fp32 arm's, in the order of the calls."""
        return tuple(
            ModuleOutput(path, _distance(fp32._outputs[path], ours), fp32._largest[path])
            for path, ours in self._outputs.items()
            if path in fp32._outputs and fp32._outputs[path].shape == ours.shape
        )

    def gradients_beside(self, fp32: Witness) -> tuple[Gradient, ...]:
        """Compare this arm's gradients with the fp32 arm's.

        Nothing is compared if the parameters do not match, or if one arm took more steps, as after
        a step that was skipped: then the gradients come from different data.
        """
        if self._shapes != fp32._shapes:
            return ()
        if self.steps != fp32.steps:  # the gradients come from other data
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
    """Return the gradient as the optimizer will use it, on the CPU; None without a dense one.

    A fused optimizer divides by the loss scale itself, which torch hands to it.
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
    """Return the norm of the difference, relative to what is expected."""
    size = float(expected.norm())
    return float((found - expected).norm()) / size if size else 0.0


def _beside(expected: torch.Tensor, found: torch.Tensor) -> tuple[float, float, float]:
    """Return the cosine, the ratio of norms, and the share of elements that became zero."""
    sizes = float(expected.norm()), float(found.norm())
    product = float(expected.flatten() @ found.flatten())
    cosine = product / (sizes[0] * sizes[1]) if sizes[0] and sizes[1] else math.nan
    alive = expected != 0
    zeroed = int((alive & (found == 0)).sum()) / max(1, int(alive.sum()))
    return cosine, sizes[1] / sizes[0] if sizes[0] else math.nan, zeroed


def _share(gradient: torch.Tensor, total: float) -> float:
    return float(gradient.norm()) / total if total else 0.0
