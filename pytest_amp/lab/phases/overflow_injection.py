"""Make the loss of one `scale()` infinite, and watch what that reaches up to the next update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.phases.drill import DrilledArm
from pytest_amp.lab.watch.events import OptimizerSteps, subscribed
from pytest_amp.lab.watch.fingerprint import digest
from pytest_amp.lab.watch.nonfinite_trail import NonfiniteTrail
from pytest_amp.lab.watch.source import location
from pytest_amp.lab.watch.tensors import floating, is_finite, plain_parts

__tracebackhide__ = unless_our_bug

_ZERO = "zero"


@dataclass
class Seen:
    """What was seen in one cycle, up to an update. Optimizers are told by their numbers.

    Attributes:
        reached: the optimizers that stepped, or would have, on gradients that are not finite.
        changed: by optimizer, the parameters and state that changed although the overflow reached
            it.
        stepped: the optimizers that took a step.
        stepped_with: those that took one in the user's step whose loss was made infinite.
        backward: whether a backward pass that adds to gradients began at the infinite loss.
        backward_at: the user's line that called it.
        dropped: whether its infinite gradients were gone when the next such pass began.
        cleared_at: the user's line that made these gradients finite.
        scale: the loss scale at the infinite loss.
        scale_after: the loss scale after the last update; None if there was none.
    """

    reached: set[int] = field(default_factory=set)
    changed: dict[int, list[str]] = field(default_factory=dict)
    stepped: set[int] = field(default_factory=set)
    stepped_with: set[int] = field(default_factory=set)
    backward: bool = False
    backward_at: str | None = None
    dropped: bool = False
    cleared_at: str | None = None
    scale: float = 0.0
    scale_after: float | None = None


class Injection:
    """Makes the loss of one `scale()` infinite, and watches optimizers up to the next update.

    Args:
        run: the arm, in its drill.
        inject: makes scaled losses infinite.
        trail: knows which line made gradients finite again, where lines are looked for.

    Attributes:
        calls: how often an enabled scaler has scaled in this cycle.
        done: whether a loss was made infinite in this cycle.
    """

    def __init__(
        self, run: DrilledArm, inject: Callable[[Any], Any], trail: NonfiniteTrail | None = None
    ) -> None:
        self.calls = 0
        self.done = False
        self._run = run
        self._inject = inject
        self._trail = trail
        self._call: int | None = None
        self._looking = False
        self._inside = False
        self._accumulates = False
        self._called: str | None = None
        self._infinite: list[torch.Tensor] = []
        self._scaler: Any = None
        self._step = -1
        self._before: dict[Optimizer, dict[str, str]] = {}
        self._seen = Seen()

    @property
    def stepped(self) -> set[int]:
        """The optimizers that took a step in this cycle."""
        return self._seen.stepped

    def new_cycle(self, call: int | None = None) -> Seen:
        """Start counting again, and make the loss of `scale()` number `call`, from 0, infinite."""
        self.calls, self.done, self._call, self._looking = 0, False, call, False
        self._before.clear()
        self._infinite = []
        self._seen = Seen()
        return self._seen

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Inject and watch inside."""
        before = self._before_step
        with (
            subscribed(
                scale=self._around_scale,
                scaler_step=self._around_step,
                update=self._around_update,
                backward=self._around_backward,
            ),
            OptimizerSteps(before, self._after_step, again=before),
        ):
            yield

    def _around_scale(self, original: Any, scaler: Any, *args: Any, **kwargs: Any) -> Any:
        scaled = original(scaler, *args, **kwargs)
        if not scaler.is_enabled():
            return scaled
        self.calls += 1
        if self._call is None or self.calls <= self._call:
            return scaled
        self._call, self._looking = None, True
        self._scaler, self._step = scaler, self._run.taken
        self._seen.scale = scaler.get_scale()
        self.done = True
        scaled = self._inject(scaled)
        loss = pytree.tree_leaves(scaled)[0]
        if loss.requires_grad:
            loss.register_hook(self._note_backward)
        return scaled

    def _around_backward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Note whether the pass adds to parameters' gradients, and what became of infinite ones.

        ``torch.autograd.grad`` returns gradients to the step instead, so no optimizer has them yet.
        If a pass begins where the last one's infinite gradients are gone, the step dropped them, as
        one does that looks ahead along them and then starts afresh.
        """
        self._accumulates, self._called = bool(kwargs.get("accumulate_grad")), location()
        if self._accumulates and self._infinite:
            self._seen.dropped |= all(not _holds_anything(each.grad) for each in self._infinite)
            self._infinite = []
        result = original(*args, **kwargs)
        if self._looking and self._accumulates and self._seen.backward:
            trained = self._run.watch.trained.parameters
            self._infinite = [each for each in trained if is_not_finite(each.grad)]
        return result

    def _note_backward(self, _: torch.Tensor) -> None:
        if self._accumulates:
            self._seen.backward, self._seen.backward_at = True, self._called

    def _around_step(self, original: Any, scaler: Any, *args: Any, **kwargs: Any) -> Any:
        optimizer = args[0] if args else kwargs["optimizer"]
        if not scaler.is_enabled() or not self._looking:
            return original(scaler, *args, **kwargs)
        before = self._look(optimizer)
        self._inside = True
        try:
            return original(scaler, *args, **kwargs)
        finally:
            self._inside = False
            self._compare(optimizer, before)

    def _around_update(self, original: Any, scaler: Any, *args: Any, **kwargs: Any) -> Any:
        """Look no further after an update, unless the overflow has not reached an optimizer yet.

        A step may update the scale after each of its optimizers.
        """
        result = original(scaler, *args, **kwargs)
        if self._looking and scaler.is_enabled():
            self._looking = not self._seen.reached
            self._seen.scale_after = scaler.get_scale()
        return result

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        number = self._run.watch.trained.number(optimizer)
        self._seen.stepped.add(number)
        if self._run.taken == self._step:
            self._seen.stepped_with.add(number)
            self._note_cleared(optimizer)
        if self._looking and not self._inside and optimizer not in self._before:
            self._before[optimizer] = self._look(optimizer)

    def _note_cleared(self, optimizer: Optimizer) -> None:
        gradients = [param.grad for _, param in self._run.parameters(optimizer)]
        for gradient in gradients:
            if self._trail is not None and gradient is not None and not self._seen.cleared_at:
                self._seen.cleared_at = self._trail.cleared_at(gradient)

    def _after_step(self, optimizer: Optimizer) -> None:
        before = self._before.pop(optimizer, None)
        if before is not None:
            self._compare(optimizer, before)

    def _look(self, optimizer: Optimizer) -> dict[str, str]:
        """Digest what the optimizer may change, and note whether an overflow has reached it."""
        found: dict[str, str] = {}
        for name, param in self._run.parameters(optimizer):
            if is_not_finite(param.grad) or self._scaler_found_inf(optimizer):
                self._seen.reached.add(self._run.watch.trained.number(optimizer))
            found[name] = digest([param])[0]
            state = optimizer.state.get(param)
            entries = state if isinstance(state, Mapping) else {"state": state}
            known = {key: value for key in entries if (value := _value(entries[key])) is not None}
            found.update({f"{key} of {name}": value for key, value in known.items()})
        return found

    def _scaler_found_inf(self, optimizer: Optimizer) -> bool:
        """Return whether the scaler has already seen the overflow in this optimizer's gradients."""
        state = getattr(self._scaler, "_per_optimizer_states", {}).get(id(optimizer), {})
        return any(bool(found.item()) for found in state.get("found_inf_per_device", {}).values())

    def _compare(self, optimizer: Optimizer, before: dict[str, str]) -> None:
        number = self._run.watch.trained.number(optimizer)
        after = self._look(optimizer)
        # A fused optimizer creates its state even in a skipped step, so new zeros are no change.
        changed = [name for name in after if after[name] != before.get(name, _ZERO)]
        if changed and number in self._seen.reached:
            known = self._seen.changed.setdefault(number, [])
            known += [name for name in changed if name not in known]


def with_infinite_gradients(scaled: Any) -> Any:
    """Leave scaled losses as they are, and make the gradients of the first infinite."""
    loss = pytree.tree_leaves(scaled)[0]
    if loss.requires_grad:
        loss.register_hook(lambda gradient: gradient * math.inf)
    return scaled


def is_not_finite(tensor: torch.Tensor | None) -> bool:
    """Return whether there is a tensor, and inf or NaN in it."""
    return tensor is not None and not all(map(is_finite, floating(tensor)))


def _holds_anything(gradient: torch.Tensor | None) -> bool:
    parts = [] if gradient is None else floating(gradient)
    return any(bool((part != 0).any()) for part in parts)


def _value(state: Any) -> str | None:
    """Digest a state's value; return None if it can't be looked into."""
    if isinstance(state, torch.Tensor):
        parts = plain_parts(state)
        if parts is None:
            return None
        return digest([state])[0] if any(bool(part.any()) for part in parts) else _ZERO
    if isinstance(state, (bool, int, float, str)):
        return digest([state])[0] if state else _ZERO
    return None
