"""Find where a loss stopped being finite, by rerunning the step under watch in a fresh build."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils import _pytree as pytree

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.arm import Workbench
from pytest_amp.lab.watch.dispatch import DispatchMode
from pytest_amp.lab.watch.flops import operator_name
from pytest_amp.lab.watch.modules import ModuleStack
from pytest_amp.lab.watch.tensors import floating, is_finite
from pytest_amp.observations import Origin

__tracebackhide__ = unless_our_bug


class _FirstNonfinite(DispatchMode):
    """Finds the first operator whose output is further from finite than its inputs.

    NaN made from infinities counts, then, but a mask that is filled with a given -inf does not.
    Backward passes are left out, since handling gradients that overflow is the GradScaler's job.
    """

    def __init__(self, modules: ModuleStack) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._modules = modules
        self.op: str | None = None
        self.module: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        forward = torch._C._current_graph_task_id() == -1
        looking = self.op is None and forward
        given = _badness((args, kwargs)) if looking else 0  # the call may change its inputs
        out = func(*args, **(kwargs or {}))
        if looking and _badness(out) > given:
            self.op = operator_name(func)
            self.module = self._modules.path()
        return out


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


def locate(bench: Workbench, step: int) -> Origin | None:
    """Find the operator that left the finite range in the amp arm's step `step`, from 0.

    The arm is built anew and run up to that step. Compiled code runs eagerly in it. The result is
    None if everything in it was finite.
    """
    with bench.built("amp") as resident, resident.active():
        for index in range(step):
            bench.progress.at("locating", "amp", index + 1, step + 1)
            resident.step()
        bench.progress.at("locating", "amp", step + 1, step + 1)
        eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        with eager, ModuleStack() as modules, _FirstNonfinite(modules) as watch:
            resident.step()
    return None if watch.op is None else Origin(step, watch.op, watch.module)
