"""The scale drill: compare what each optimizer sees at its first step at two loss scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch.optim import Optimizer

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.phases.drill import DrilledArm, NothingShown
from pytest_amp.lab.scaling.scaler import set_scale
from pytest_amp.lab.watch.events import OptimizerSteps, subscribed
from pytest_amp.lab.watch.gradient_edits import GradientEdits
from pytest_amp.lab.watch.source import location
from pytest_amp.lab.watch.tensors import values
from pytest_amp.lab.workbench import Workbench
from pytest_amp.observations import GradientAtTwoScales, TwoScales

__tracebackhide__ = unless_our_bug

# Powers of two, so that anything linear in the gradients is the same to the last bit. In float32,
# nothing underflows at the lower scale or overflows at the higher one.
HIGH, LOW = 2.0**14, 2.0**10
# At the lower scale each further GradScaler that scales a loss has half the scale of the one
# before, up to here: a loss that one scales and another unscales then shows.
MOST_HALVED = 4
# Above this difference, a third build shows by how much two builds at one scale differ.
SUSPICIOUS = 1e-6
# Losses of one step at two scales are equal, unless they are made of scaled gradients.
SAME_LOSS = 1e-3

Key = tuple[int, str]  # the optimizer's number, the parameter's name


def two_scales(bench: Workbench, steps: int, optimizers: int) -> TwoScales:
    """Compare the gradients of builds from one seed at two loss scales.

    Only the first build's gradients are kept.

    Args:
        bench: what arms are built on.
        steps: the most steps that a build runs.
        optimizers: how many optimizers have to step before a build may stop.

    Raises:
        NothingShown: a step is skipped, or gradients are not finite.
    """
    kept: dict[Key, torch.Tensor] = {}

    def compared(scale: float) -> tuple[_AtScale, dict[Key, tuple[float, float | None]]]:
        found = {key: _difference(gradient, None) for key, gradient in kept.items()}

        def compare(key: Key, gradient: torch.Tensor) -> None:
            found[key] = _difference(kept.get(key), gradient)

        at_scale = _AtScale(bench, steps, scale)
        at_scale.run(optimizers, compare)
        return at_scale, found

    high = _AtScale(bench, steps, HIGH)
    high.run(optimizers, kept.__setitem__)
    low, found = compared(LOW)
    noise: dict[Key, tuple[float, float | None]] = {}
    if any(difference > SUSPICIOUS for difference, _ in found.values()):
        _, noise = compared(HIGH)
    pairs = list(zip(high.losses, low.losses, strict=False))  # a fault may drop some
    same = [a > 0 and math.isclose(a, b, rel_tol=0.01) for a, b in pairs]
    return TwoScales(
        scales=(HIGH, LOW),
        optimizers=max(high.kinds, low.kinds, key=len),
        gradients=tuple(
            GradientAtTwoScales(*key, difference, ratio, noise.get(key, (0.0, None))[0])
            for key, (difference, ratio) in sorted(found.items(), key=lambda item: item[0][0])
        ),
        backwards=len(same),
        unscaled=sum(same),
        in_half=high.in_half or low.in_half,
        loss_differs=not all(
            math.isclose(a, b, rel_tol=SAME_LOSS)
            for a, b in zip(high.returned, low.returned, strict=False)
        ),
        edited_at={number: line for number, line in high.edited_at.items() if line},
        derived_at=high.derived_at,
    )


class _AtScale:
    """One build at one loss scale.

    Attributes:
        losses: the magnitude of what each backward pass began at.
        in_half: whether any of these passes goes through float16.
        returned: the losses that the steps returned.
        edited_at: by optimizer, the user's line that changed its gradients before they were
            unscaled.
        derived_at: the user's line that computed gradients of a scaled loss for its own use.
        kinds: the optimizers' class names, in the order of their numbers.
    """

    def __init__(self, bench: Workbench, steps: int, scale: float) -> None:
        self.losses: list[float] = []
        self.in_half = False
        self.returned: list[float] = []
        self.edited_at: dict[int, str | None] = {}
        self.derived_at: str | None = None
        self.kinds: tuple[str, ...] = ()
        self._steps = steps
        self._scale = scale
        self._forced: WeakSet[Any] = WeakSet()
        self._scaled: WeakSet[Any] = WeakSet()
        self._stepped: set[int] = set()
        self._bench = bench

    def run(self, optimizers: int, look: Callable[[Key, torch.Tensor], None]) -> None:
        """Pass the gradients at each optimizer's first step to `look`."""
        run = DrilledArm(
            self._bench, "scale drill", self._steps
        )  # a local, since it keeps the arm alive

        edits = GradientEdits()

        def note_edit(optimizer: Optimizer) -> None:
            """Look for what changed the gradients up to the first time that they are unscaled."""
            number = run.watch.trained.number(optimizer)
            line = edits.line_of(param for _, param in run.parameters(optimizer))
            self.edited_at.setdefault(number, line)

        def before_unscale(original: Any, scaler: Any, optimizer: Optimizer) -> Any:
            note_edit(optimizer)
            return original(scaler, optimizer)

        def before_step(optimizer: Optimizer, kwargs: Any) -> None:
            number = run.watch.trained.number(optimizer)
            if number in self._stepped:
                return
            self._stepped.add(number)
            note_edit(optimizer)
            scale = _still_scaled_by(optimizer, kwargs)
            for name, param in run.parameters(optimizer):
                gradient = _gradient(param, scale)
                if gradient is not None:
                    look((number, name), gradient)

        def before_backward(original: Any, *args: Any, **kwargs: Any) -> Any:
            edits.forget()
            return original(*args, **kwargs)

        with (
            edits,
            run.built(
                self._installed(before_step),
                subscribed(unscale=before_unscale, backward=before_backward),
            ),
        ):
            for _ in range(self._steps):
                self.returned += run.step()
                if len(self._stepped) >= optimizers:
                    break
            use = run.watch.use()
        if any(step.skipped for step in use.steps):
            raise NothingShown(f"a step is skipped at the loss scale {self._scale:g} in float32")
        self.kinds = use.optimizers

    @contextmanager
    def _installed(self, before_step: Callable[..., None]) -> Iterator[None]:
        with (
            subscribed(
                scaler_made=self._around_making,
                scaler_loaded=self._around_making,
                scale=self._around_scale,
                autocast_enter=_in_float32,
                backward=self._around_backward,
            ),
            OptimizerSteps(before_step),
        ):
            yield

    def _around_making(self, original: Any, scaler: Any, *args: Any, **kwargs: Any) -> None:
        original(scaler, *args, **kwargs)
        self._force(scaler)

    def _around_scale(self, original: Any, scaler: Any, *args: Any, **kwargs: Any) -> Any:
        """Force the scale of a scaler that was made before the drill, or scales beside others."""
        if scaler not in self._forced:
            self._force(scaler)
        if scaler not in self._scaled:
            halved = min(len(self._scaled), MOST_HALVED) if self._scale == LOW else 0
            self._scaled.add(scaler)
            if halved and scaler.is_enabled():
                set_scale(scaler, self._scale / 2**halved)
        return original(scaler, *args, **kwargs)

    def _force(self, scaler: Any) -> None:
        self._forced.add(scaler)
        if scaler.is_enabled():
            set_scale(scaler, self._scale)

    def _around_backward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        within_another = torch._C._current_graph_task_id() != -1
        if kwargs.get("accumulate_grad") and not within_another:
            roots, gradients = args[:2]
            self.losses.append(sum(map(_size, roots, gradients)))
            self.in_half |= any(_flows_in_half(root.grad_fn) for root in roots)
        elif not within_another and self.derived_at is None:
            self.derived_at = location()
        return original(*args, **kwargs)


def _in_float32(enter: Any, region: Any) -> Any:
    """Let an autocast region cast to float32, so that nothing underflows in it."""
    result = enter(region)
    if region._enabled:
        torch.set_autocast_dtype(region.device, torch.float32)
    return result


def _still_scaled_by(optimizer: Any, kwargs: Any) -> Any:
    """Return what the optimizer divides by itself: a fused one gets the scale from the scaler."""
    scaler = kwargs.get("grad_scaler")  # an older way to pass it
    return getattr(optimizer, "grad_scale", None) if scaler is None else scaler.get_scale()


@torch.no_grad()
def _gradient(param: torch.Tensor, scale: Any) -> torch.Tensor | None:
    gradient = None if param.grad is None else values(param.grad)
    if gradient is None:
        return None
    if gradient.element_size() < 4:
        gradient = gradient.float()
    return gradient.clone() if scale is None else gradient / scale


@torch.no_grad()
def _difference(high: torch.Tensor | None, low: torch.Tensor | None) -> tuple[float, float | None]:
    """Return the norm of the difference / the larger norm, and the ratio of the norms."""
    norms = [_norm(each) for each in (high, low)]
    largest = max(norms)
    if not math.isfinite(sum(norms)):
        raise NothingShown("gradients are not finite in float32")
    ratio = norms[0] / norms[1] if min(norms) else None
    if not largest:
        return 0.0, None
    if high is None or low is None or high.shape != low.shape:
        return 1.0, ratio
    return _norm(high - low) / largest, ratio


def _norm(tensor: torch.Tensor | None) -> float:
    return 0.0 if tensor is None else float(torch.linalg.vector_norm(tensor))


@torch.no_grad()
def _size(root: torch.Tensor, gradient: torch.Tensor | None) -> float:
    """Return the magnitude that a backward pass begins at, from its root or the given gradient."""
    return _norm(root.detach() if gradient is None else root.detach() * gradient.detach())


def _flows_in_half(node: Any) -> bool:
    """Return whether a gradient is in float16 anywhere on its way back from this node."""
    waiting, known = [node], {None}
    while waiting:
        node = waiting.pop()
        if node in known:
            continue
        known.add(node)
        if any(each.dtype is torch.float16 for each in getattr(node, "_input_metadata", ())):
            return True
        waiting += [following for following, _ in node.next_functions]
    return False
