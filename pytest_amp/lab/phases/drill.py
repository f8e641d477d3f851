"""What the drills share: they provoke an overflow, change the loss scale, add up, or resume.

Each drill builds an arm anew. Compiled code runs eagerly in it. Afterwards all patches are
undone, and scalers that existed before have their former state.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch.optim import Optimizer

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.arm import ArmName, Setup
from pytest_amp.lab.scaling.step_watch import StepWatch
from pytest_amp.lab.watch.events import subscribed
from pytest_amp.lab.watch.losses import LossCurves
from pytest_amp.lab.watch.modules import ModuleStack
from pytest_amp.lab.workbench import Resident, Workbench
from pytest_amp.observations import ScalerUse

__tracebackhide__ = unless_our_bug

Found = TypeVar("Found")


class NothingShown(Exception):
    """The drill ran, but its outcome shows nothing; the message says why."""


def attempted(name: str, drill: Callable[[], Found], note: Callable[[str], object]) -> Found | None:
    """Run a drill and return what it shows; return None and leave a note if it shows nothing.

    Warnings are ignored, because it is the drill that provokes them, and not the user's run.

    Args:
        name: the drill's name, for the note.
        drill: the drill; an exception in it is noted, and not raised.
        note: is called with the note.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return drill()
    except NothingShown as why:
        note(f"the {name} says nothing: {why}")
    except Exception as error:  # noqa: BLE001 - the step runs without a drill, so it is not at fault
        what = (str(error).splitlines() or [""])[0]
        note(f"the {name} ended early, and its rules are silent: {type(error).__name__}: {what}")
    return None


class DrilledArm:
    """An arm in a drill: it runs steps, and watches scalers, optimizers and modules.

    Attributes:
        watch: the record of what scalers and optimizers did.
        modules: the modules that ran.
        limit: at most how many steps to wait for an update.
        taken: how many steps were run.
    """

    def __init__(self, bench: Workbench, phase: str, limit: int, name: ArmName = "amp") -> None:
        self.watch = StepWatch()
        self.modules = ModuleStack()
        self.limit = limit
        self._bench = bench
        self._phase = phase
        self._name: ArmName = name
        self.taken = 0
        self._resident: Resident | None = None

    @contextmanager
    def built(
        self,
        *patches: AbstractContextManager[Any],
        change: Callable[[Setup], Setup] = lambda setup: setup,
    ) -> Iterator[Resident]:
        """Build the arm under the watch and these patches, and keep it active inside.

        Args:
            patches: what to enter before the build.
            change: makes another setup from the user's.
        """
        self._bench.progress.at(self._phase, self._name)
        with ExitStack() as stack:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(self.watch.installed())
            for patch in patches:
                stack.enter_context(patch)
            stack.enter_context(_scalers_put_back())  # the last one sees calls first
            resident = stack.enter_context(self._bench.built(self._name, change))
            stack.enter_context(resident.active())
            stack.enter_context(self.modules)
            self._resident = resident
            yield resident

    def step(self) -> tuple[float, ...]:
        """Run the user's step once and return its losses."""
        assert self._resident is not None
        self.taken += 1
        self._bench.progress.at(self._phase, self._name, self.taken)
        losses = LossCurves()
        losses.append(self._resident.step())
        self.watch.next_step()
        return tuple(curve[0] for curve in losses.read().values())

    def to_update(self) -> Cycle | None:
        """Run steps up to a scaler's next `update()`: several if gradients are accumulated.

        Returns:
            The steps; None if there was no update within `limit` steps.
        """
        before = self.watch.use()
        losses: list[float] = []
        for _ in range(self.limit):
            losses += self.step()
            now = self.watch.use()
            if now.updates > before.updates:
                return Cycle(before, now, tuple(losses))
        return None

    def parameters(self, optimizer: Optimizer) -> list[tuple[str, torch.Tensor]]:
        """Return the optimizer's parameters with their names.

        A parameter of a module that did not run is named for its place in the optimizer.
        """
        names = self.modules.parameter_names()
        given = [param for group in optimizer.param_groups for param in group["params"]]
        return [
            (names.get(id(param), f"parameter {index} of {len(given)}"), param)
            for index, param in enumerate(given, 1)
        ]


class Cycle:
    """The steps up to an update, as a scaler saw them.

    Attributes:
        losses: their losses.
        moves: for each `step()` of a scheduler without arguments, its optimizer's number.
        by_scaler: the optimizers that a scaler stepped or skipped.
    """

    def __init__(self, before: ScalerUse, after: ScalerUse, losses: tuple[float, ...]) -> None:
        self.losses = losses
        self.moves = tuple(number for _, number in after.moves[len(before.moves) :])
        self._steps = after.steps[len(before.steps) :]
        self.by_scaler = frozenset(step.optimizer for step in self._steps)

    @property
    def skipped(self) -> frozenset[int]:
        """The optimizers whose every step was skipped."""
        taken = {step.optimizer for step in self._steps if not step.skipped}
        return self.by_scaler - taken


@contextmanager
def _scalers_put_back() -> Iterator[None]:
    """Restore scalers that existed before to the state in which they were first used inside."""
    made: WeakSet[Any] = WeakSet()
    met: dict[Any, dict[str, Any]] = {}

    def around_init(original: Any, scaler: Any, *args: Any, **kwargs: Any) -> None:
        original(scaler, *args, **kwargs)
        made.add(scaler)

    def around_use(original: Any, scaler: Any, *args: Any, **kwargs: Any) -> Any:
        if scaler not in made and scaler not in met:
            met[scaler] = {name: _copied(value) for name, value in vars(scaler).items()}
        return original(scaler, *args, **kwargs)

    use = {"scale": around_use, "scaler_step": around_use, "update": around_use}
    with subscribed(scaler_made=around_init, **use):
        try:
            yield
        finally:
            for scaler, before in met.items():
                vars(scaler).clear()
                vars(scaler).update(before)


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    return value.copy() if isinstance(value, dict) else value
