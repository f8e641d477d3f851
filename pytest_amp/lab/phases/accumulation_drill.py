"""The accumulation drill: hold what an optimizer sees against the sum of its micro-batches.

Each arm is held against itself: what the backward passes brought is added up once more in float32.
Only the direction counts, so that a loss scale or clipping by norm is no difference. A step that
changes gradients on purpose, as by noise or clipping by value, does so in the fp32 arm as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.arm import Arm, ArmName, Setup, Step
from pytest_amp.lab.phases.drill import DrilledArm
from pytest_amp.lab.scaling.step_watch import starting_at
from pytest_amp.lab.watch import stateful
from pytest_amp.lab.watch.events import OptimizerSteps, subscribed
from pytest_amp.lab.watch.gradient_edits import GradientEdits
from pytest_amp.lab.watch.numerics import seen_by
from pytest_amp.lab.watch.source import location
from pytest_amp.lab.watch.tensors import values
from pytest_amp.lab.workbench import Workbench
from pytest_amp.observations import Accumulated, AccumulatedGradient

__tracebackhide__ = unless_our_bug

# A sum is what the fp32 arm's gradient is made of if they differ by no more than this.
FITS = 1e-4

Key = tuple[int, str]  # the optimizer's number, the parameter's name


def accumulated(bench: Workbench, steps: int, scale: float | None) -> Accumulated:
    """Compare gradients at each optimizer's first step with what the backward passes brought.

    Args:
        bench: what arms are built on.
        steps: the most steps that a build runs.
        scale: the loss scale at which amp's steps are not skipped.
    """
    fp32 = _Summed(bench, "fp32", steps, None)
    amp = _Summed(bench, "amp", steps, scale)
    both = [key for key in fp32.found if key in amp.found]
    pairs = [(key[1], fp32.found[key], amp.found[key]) for key in both]
    total = math.hypot(*(float(theirs.seen.norm()) for _, theirs, _ in pairs))
    return Accumulated(
        tuple(
            each
            for name, theirs, ours in pairs
            if (each := _beside(name, theirs, ours, total)) is not None
        ),
        edited_at=amp.edited_at,
        emptied_at=amp.emptied_at,
        backward_at=amp.backward_at,
        steps=(fp32.steps, amp.steps),
    )


def _beside(name: str, fp32: _Sum, amp: _Sum, total: float) -> AccumulatedGradient | None:
    """Compare both arms' gradients, in the sense in which the fp32 arm's is a sum.

    It usually is one of what came since the gradient was empty. A step that adds up in buffers of
    its own empties it meanwhile, and then it is one of all that came since the last step.
    """
    errors = [[_off(each.seen, each.made(which)) for which in (0, 1)] for each in (fp32, amp)]
    which = 0 if errors[0][0] <= max(FITS, errors[0][1]) else 1
    norms = float(fp32.seen.norm()), float(amp.seen.norm())
    product = float(fp32.seen.flatten().double() @ amp.seen.flatten().double())
    if not (all(norms) and math.isfinite(sum(norms))):
        return None
    return AccumulatedGradient(
        name,
        norms[0] / total,
        (fp32.passes[which], amp.passes[which]),
        (errors[0][which], errors[1][which]),
        norms[1] / norms[0],
        product / (norms[0] * norms[1]),
        rounding=_off(amp.made(which), fp32.made(which)),
    )


def _off(seen: torch.Tensor, made: torch.Tensor) -> float:
    """Return the norm of what is not along `made` / the norm of what was seen."""
    a, b = seen.flatten().double(), made.flatten().double()
    size, square = float(a.norm()), float(b @ b)
    if not (size and square):
        return 1.0
    return float((a - (a @ b) / square * b).norm()) / size


@dataclass
class _Sum:
    """What backward passes brought to one gradient, and what its optimizer saw.

    Attributes:
        since_empty: the sum since the gradient was empty.
        since_step: the sum since the optimizer's last step.
        passes: how many passes each of them has.
        seen: the gradient at the optimizer's step.
    """

    since_empty: torch.Tensor
    since_step: torch.Tensor
    passes: tuple[int, int] = (0, 0)
    seen: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def made(self, which: int) -> torch.Tensor:
        """Return the first or the second of the sums."""
        return self.since_step if which else self.since_empty


class _Summed:
    """One build of an arm, up to each optimizer's first step.

    Attributes:
        found: the sums of the parameters that an optimizer stepped on, on the CPU.
        edited_at: the user's line that first changed a gradient before its step.
        emptied_at: the user's line that emptied gradients after a backward pass.
        backward_at: the user's line of the last backward pass.
        steps: how many of the user's steps were run.
    """

    def __init__(self, bench: Workbench, name: ArmName, steps: int, scale: float | None) -> None:
        self.found: dict[Key, _Sum] = {}
        self.edited_at: str | None = None
        self.emptied_at: str | None = None
        self.backward_at: str | None = None
        self.steps = 0
        self._sums: dict[int, _Sum] = {}
        self._kept: list[Any] = []
        self._optimizers: list[Optimizer] = []
        self._stepped: set[Optimizer] = set()
        self._edits = GradientEdits()
        self._run(DrilledArm(bench, "accumulation drill", steps, name), scale)
        self._sums.clear()
        self._kept.clear()
        self._optimizers.clear()
        self._stepped.clear()
        del self._edits  # it keeps gradients alive

    def _run(self, run: DrilledArm, scale: float | None) -> None:
        def seen(optimizer: Optimizer, *_: Any) -> None:
            self._look(run, optimizer)

        with ExitStack() as stack:
            stack.enter_context(starting_at(scale))
            stack.enter_context(self._edits)
            stack.enter_context(
                run.built(
                    subscribed(backward=self._around_backward, scaler_step=self._around_step),
                    OptimizerSteps(seen, self._forget),
                    change=self._watching,
                )
            )
            while run.taken < run.limit:
                run.step()
                if self._stepped >= set(self._optimizers):
                    break
            self.steps = run.taken

    def _watching(self, setup: Setup) -> Setup:
        """Change a setup to watch what reaches the parameters of the optimizers that it makes."""

        def changed(arm: Arm) -> Step:
            before = stateful.objects_with_state()
            step = setup(arm)
            made = stateful.made_since(before)
            self._optimizers = [each for each in made if isinstance(each, Optimizer)]
            for param in {param: None for each in self._optimizers for param in _trained(each)}:
                with torch.enable_grad():
                    view: Any = param.view_as(param).grad_fn
                node = view.next_functions[0][0]
                node.register_prehook(self._hook(param))
                self._kept.append(node)  # nothing else does
            return step

        return changed

    def _hook(self, param: torch.Tensor) -> Callable[[Any], None]:
        """Return what adds up the gradients that a backward pass is about to add."""

        @torch.no_grad()
        def add(gradients: Any) -> None:
            given = None if gradients[0] is None else values(gradients[0])
            if given is None or gradients[0].is_sparse:
                return
            new = given.float()
            known = self._sums.get(id(param))
            if known is None:
                self._sums[id(param)] = _Sum(new.clone(), new.clone(), (1, 1))
                return
            known.since_step += new
            passes = known.passes[0] + 1
            if param.grad is None or not bool(param.grad.any()):
                known.since_empty, passes = new.clone(), 1
            else:
                known.since_empty += new
            known.passes = passes, known.passes[1] + 1

        return add

    def _around_backward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("accumulate_grad"):
            if not self._sums:
                self._edits.forget()
            every = (param for each in self._optimizers for param in _trained(each))
            self.emptied_at = self.emptied_at or self._edits.emptied(every)
            self.backward_at = location()
        return original(*args, **kwargs)

    def _look(self, run: DrilledArm, optimizer: Optimizer) -> None:
        if optimizer in self._stepped:
            return
        self._stepped.add(optimizer)
        for name, param in run.parameters(optimizer):
            known, seen = self._sums.get(id(param)), seen_by(optimizer, param)
            if known is not None and seen is not None and seen.shape == known.since_step.shape:
                known.since_empty, known.since_step = (
                    known.since_empty.cpu(),
                    known.since_step.cpu(),
                )
                known.seen = seen
                self.found[run.watch.trained.number(optimizer), name] = known
        if self.edited_at is None:
            self.edited_at = self._edits.line_of(param for _, param in run.parameters(optimizer))

    def _around_step(self, original: Any, scaler: Any, *args: Any, **kwargs: Any) -> Any:
        """Forget what a skipped step leaves; a step that is taken is seen by itself."""
        result = original(scaler, *args, **kwargs)
        self._forget(args[0] if args else kwargs["optimizer"])
        return result

    def _forget(self, optimizer: Optimizer) -> None:
        for param in _trained(optimizer):
            self._sums.pop(id(param), None)


def _trained(optimizer: Optimizer) -> list[torch.Tensor]:
    given = [param for group in optimizer.param_groups for param in group["params"]]
    return [param for param in given if param.requires_grad]
