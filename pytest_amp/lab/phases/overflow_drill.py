"""The overflow drill: make one scaled loss infinite, and watch how the step copes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from pytest_amp.errors import AmpError, unless_our_bug
from pytest_amp.lab.arm import Workbench
from pytest_amp.lab.phases.drill import Cycle, DrilledArm
from pytest_amp.lab.scaling.scaler import infinite, raised_by_scaler
from pytest_amp.lab.watch.events import OptimizerSteps, subscribed
from pytest_amp.lab.watch.fingerprint import digest
from pytest_amp.lab.watch.nonfinite_trail import NonfiniteTrail
from pytest_amp.lab.watch.source import location, location_of
from pytest_amp.lab.watch.tensors import floating, is_finite, plain_parts
from pytest_amp.observations import Overflow, OverflowDrill

__tracebackhide__ = unless_our_bug

# An overflow halves the scale. If this many further steps are skipped, the scaler is stuck.
PATIENCE = 3
_ZERO = "zero"


def overflow(bench: Workbench, steps: int, begin: int = 0) -> OverflowDrill | None:
    """Overflow one loss, and then others until each optimizer has been reached.

    The drill begins after the step `begin`, once a step was not skipped and the scale therefore
    fits. The result is None if that, or an `update()`, does not happen within `steps` steps.

    A step may well refuse a loss that is infinite, and yet bear gradients that are. So if it
    raises, the drill is repeated with a finite loss and infinite gradients, which decides.
    """
    inject = infinite
    drill = _drilled(bench, steps, begin, inject)
    if drill is not None and drill.overflows[-1].died:
        inject = _with_infinite_gradients
        drill = _drilled(bench, steps, begin, inject)
    if drill is None or not any(map(_has_a_trail, drill.overflows)):
        return drill
    try:
        return _drilled(bench, steps, begin, inject, NonfiniteTrail()) or drill
    except Exception:  # noqa: BLE001 - what the drill has shown stands without its lines
        return drill


def _has_a_trail(found: Overflow) -> bool:
    """Return whether inf got into something, or out of it, on a line that is worth a search."""
    return bool(found.ruined or found.ruined_later or found.hidden)


def _drilled(
    bench: Workbench,
    steps: int,
    begin: int,
    inject: Callable[[Any], Any],
    trail: NonfiniteTrail | None = None,
) -> OverflowDrill | None:
    """Drill a fresh build.

    Args:
        bench: builds the arm.
        steps: how many steps to wait for an update.
        begin: after which step the drill begins.
        inject: makes scaled losses infinite.
        trail: follows what is not finite, where lines are looked for.
    """
    run = DrilledArm(bench, "overflow drill", steps)
    injection = _Injection(run, inject, trail)
    with run.built(injection.installed(), trail or nullcontext()):
        normal = _normal(run, injection, begin)
        if normal is None:
            return None
        scaled, stepped = injection.calls, frozenset(injection.stepped)
        found: list[Overflow] = []
        for call in sorted({0, scaled // 2, scaled - 1}):
            found.append(_one(run, injection, call, stepped, normal))
            if trail is not None:
                bad = filter(_is_not_finite, run.watch.trained.parameters)
                line = next(filter(None, map(trail.written_at, bad)), None)
                found[-1] = replace(found[-1], ruined_at=line)
            reached = {number for each in found for number in each.reached}
            ended = found[-1].raised or found[-1].died or not found[-1].recovered
            if ended or stepped <= reached:
                break
        return OverflowDrill(run.watch.use().optimizers, normal.moves, tuple(found))


def _normal(run: DrilledArm, injection: _Injection, begin: int) -> Cycle | None:
    """Return the first update without a skipped step, after the step `begin`."""
    for _ in range(run.limit):
        injection.new_cycle()
        cycle = run.to_update()
        if cycle is None or (run.taken > begin and not cycle.skipped):
            return cycle if injection.calls else None
    return None


def _one(
    run: DrilledArm, injection: _Injection, call: int, stepped: frozenset[int], normal: Cycle
) -> Overflow:
    cycle: Cycle | None = None
    next_loss_finite, recovered, raised, raised_at = True, True, None, None
    ruined: list[str] = []
    ruined_later: list[str] = []
    seen = injection.new_cycle(call)
    try:
        cycle = run.to_update()
        if cycle is not None:
            ruined = _ruined(run)
            following = _followed(run, injection)
            ruined_later = [] if ruined else _ruined(run)
            recovered = not following or not following[-1].skipped
            losses = following[0].losses if following else ()
            was_finite = all(map(math.isfinite, normal.losses))
            next_loss_finite = not was_finite or all(map(math.isfinite, losses))
    except (Exception, SystemExit) as error:
        if isinstance(error, AmpError) or not injection.done:
            raise
        if not raised_by_scaler(error):
            what = " ".join(str(error).split()).partition(". ")[0]
            died = f"{type(error).__name__}: {what}" if what else type(error).__name__
            return Overflow(scale=(seen.scale, None), died=died, died_at=location_of(error))
        raised, raised_at = str(error), location_of(error)
    idle = stepped - normal.by_scaler - seen.stepped  # the user's code may check for inf itself
    lowered = seen.scale_after is not None and seen.scale_after < seen.scale
    return Overflow(
        reached=tuple(sorted(seen.reached)),
        changed={number: tuple(names) for number, names in seen.changed.items()},
        ruined=tuple(ruined),
        ruined_later=tuple(ruined_later),
        skipped=tuple(sorted(idle | cycle.skipped)) if cycle else (),
        backward=seen.backward,
        backward_at=seen.backward_at,
        left_out=seen.backward and not seen.reached and not seen.stepped_with and not lowered,
        hidden=(
            seen.backward
            and not seen.dropped
            and not seen.reached
            and bool(seen.stepped_with)
            and not lowered
        ),
        cleared_at=seen.cleared_at,
        moves=cycle.moves if cycle else (),
        scale=(seen.scale, seen.scale_after),
        next_loss_finite=next_loss_finite,
        recovered=recovered,
        raised=raised,
        raised_at=raised_at,
    )


def _ruined(run: DrilledArm) -> list[str]:
    """Return the names of the trained parameters that are not finite."""
    return [
        name
        for optimizer in run.watch.trained.optimizers
        for name, param in run.parameters(optimizer)
        if _is_not_finite(param)
    ]


def _followed(run: DrilledArm, injection: _Injection) -> list[Cycle]:
    """Run further cycles, until one has a step that is not skipped, but at most `PATIENCE`."""
    following: list[Cycle] = []
    while len(following) < PATIENCE and (not following or following[-1].skipped):
        injection.new_cycle()
        cycle = run.to_update()
        if cycle is None:
            break
        following.append(cycle)
    return following


@dataclass
class _Seen:
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


class _Injection:
    """Makes the loss of one `scale()` infinite, and watches optimizers up to the next update."""

    def __init__(
        self, run: DrilledArm, inject: Callable[[Any], Any], trail: NonfiniteTrail | None = None
    ) -> None:
        self.calls = 0
        self.done = False  # in this cycle
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
        self._seen = _Seen()

    @property
    def stepped(self) -> set[int]:
        return self._seen.stepped

    def new_cycle(self, call: int | None = None) -> _Seen:
        """Start counting again, and make the loss of `scale()` number `call`, from 0, infinite."""
        self.calls, self.done, self._call, self._looking = 0, False, call, False
        self._before.clear()
        self._infinite = []
        self._seen = _Seen()
        return self._seen

    @contextmanager
    def installed(self) -> Iterator[None]:
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
            self._infinite = [each for each in trained if _is_not_finite(each.grad)]
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
            if _is_not_finite(param.grad) or self._scaler_found_inf(optimizer):
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


def _with_infinite_gradients(scaled: Any) -> Any:
    """Leave scaled losses as they are, and make the gradients of the first infinite."""
    loss = pytree.tree_leaves(scaled)[0]
    if loss.requires_grad:
        loss.register_hook(lambda gradient: gradient * math.inf)
    return scaled


def _holds_anything(gradient: torch.Tensor | None) -> bool:
    parts = [] if gradient is None else floating(gradient)
    return any(bool((part != 0).any()) for part in parts)


def _is_not_finite(tensor: torch.Tensor | None) -> bool:
    return tensor is not None and not all(map(is_finite, floating(tensor)))


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
