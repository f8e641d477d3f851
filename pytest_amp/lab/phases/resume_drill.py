"""The resume drill: go on from what the user's checkpoint holds, and compare with not stopping.

A resumed run is a build that first runs the same steps, so that data and random numbers are where
they were. Then all that has state is put back to how it was built, what the checkpoint holds is
loaded, and the run goes on. So only state is lost, and only what the checkpoint leaves out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.arm import Arm, Setup, Step
from pytest_amp.lab.phases.drill import DrilledArm, NothingShown
from pytest_amp.lab.scaling.scaler import infinite
from pytest_amp.lab.watch import stateful
from pytest_amp.lab.watch.events import OptimizerSteps, subscribed
from pytest_amp.lab.workbench import Workbench
from pytest_amp.observations import LeftOut, Resume

__tracebackhide__ = unless_our_bug

# How many steps run before the checkpoint, and as many after it: half of `steps`, but not more.
LEAST, MOST = 3, 10
# An optimizer that accumulates steps once in a while; a checkpoint waits for it this much longer.
PATIENCE = 8
# States that differ by less are the same.
SAME = 1e-6
# If runs that should be the same differ by more, nothing can be told.
REPEATS = 1e-3

Losses = list[tuple[float, ...]]  # of each step, all that it returned


def resume(bench: Workbench, steps: int) -> Resume:
    """Save the user's checkpoint in the midst of a run, and look what a resume from it lacks.

    A control shows that nothing else is lost: it carries over what the checkpoint leaves out, and
    must go on as the whole run does. If several things are left out, each is then left out alone.

    Raises:
        NothingShown: the step does not repeat itself, or no optimizer steps.
    """
    half = max(LEAST, min(MOST, steps // 2))
    whole = _uninterrupted(bench, half)
    resumed = _Run(bench, half, whole, overflow=whole.overflow)
    if _furthest(resumed.before, whole.before) > REPEATS:
        raise NothingShown("the step does not repeat itself")
    after, missing = len(whole.before), resumed.missing
    if not missing:
        return Resume(after)
    control = _Run(bench, half, whole, missing, overflow=whole.overflow)
    noise = _furthest(control.after, whole.after)
    if noise > REPEATS:
        raise NothingShown("the step keeps state that could not be carried over, or varies")
    left_out = [_left_out(missing[0], resumed, whole)]
    if len(missing) > 1:
        alone = [
            _left_out(index, _Run(bench, half, whole, others, overflow=whole.overflow), whole)
            for index in missing
            if (others := set(missing) - {index})
        ]
        # Where two hold the same state, as a trainer and its scaler do, neither is missed alone.
        left_out = [each for each in alone if _is_missed(each)] or left_out
    return Resume(
        after,
        tuple(left_out),
        noise,
        max(stateful.distance(control.end[index], whole.end[index]) for index in missing),
    )


def _uninterrupted(bench: Workbench, half: int) -> _Run:
    """Run without an interruption, with an overflow if the step bears one.

    The overflow lowers the loss scale, as the search for it does in any longer training.
    """
    try:
        whole = _Run(bench, half, overflow=True)
        if all(math.isfinite(loss) for losses in whole.after for loss in losses):
            return whole
    except Exception:  # noqa: BLE001 - what does not bear an overflow is left to AMP206 and AMP211
        pass
    return _Run(bench, half, overflow=False)


def _left_out(index: int, run: _Run, whole: _Run) -> LeftOut:
    kind, name, in_checkpoint = whole.names[index]
    return LeftOut(
        kind,
        name,
        in_checkpoint,
        losses=tuple(map(_furthest_pair, whole.after, run.after)),
        differences=tuple(map(_difference, whole.after, run.after)),
        scales=(whole.states[index]["scale"], run.states[index]["scale"])
        if kind == "scaler"
        else None,
        state=stateful.distance(whole.end[index], run.end[index]),
    )


def _is_missed(each: LeftOut) -> bool:
    moved = each.scales is not None and each.scales[0] != each.scales[1]
    return moved or max((*each.differences, each.state)) > SAME


@dataclass
class _Midst:
    """What an arm has that holds state, from its build on."""

    things: list[Any]
    as_built: list[stateful.State]


class _Run:
    """One build: steps, an interruption or a look, and more steps.

    Attributes:
        before: the losses of the steps before.
        after: the losses of the steps after.
        names: of all that has state the kind, the class and whether the checkpoint holds it.
        saved: what the checkpoint held, by name.
        states: the states in the midst: when they were saved, or after they were loaded.
        end: the states in the end.
        missing: which of them a resume has not brought back.
        overflow: whether the first scaled loss was made infinite.
    """

    def __init__(
        self,
        bench: Workbench,
        half: int,
        whole: _Run | None = None,
        carried: Collection[int] = (),
        *,
        overflow: bool,
    ) -> None:
        self.overflow = overflow
        self.saved: Mapping[str, Any] = {}
        self.missing: list[int] = []
        run, midst = DrilledArm(bench, "resume drill", half * PATIENCE), _Midst([], [])
        stepped = _Stepped()
        patches = (subscribed(scale=_overflowing(run)),) if overflow else ()
        with run.built(*patches, stepped.watching(), change=_noticing(midst)) as resident:
            assert resident.checkpoint is not None
            held = resident.checkpoint.state
            self.before = list(self._first(run, half, stepped, whole))
            if whole is None:
                self.saved = {name: _saved(value) for name, value in held.items()}
            else:
                self._resume(midst, held, whole, carried)
            self.states = [stateful.look(each) for each in midst.things]
            self.names = [
                (
                    stateful.kind_of(each),
                    type(each).__name__,
                    any(value is each for value in held.values()),
                )
                for each in midst.things
            ]
            self.after: Losses = [run.step() for _ in self.before]
            self.end = [stateful.look(each) for each in midst.things]

    def _first(
        self, run: DrilledArm, half: int, stepped: _Stepped, whole: _Run | None
    ) -> Iterator[tuple[float, ...]]:
        """Run as many steps as the whole run did; that ends them with an optimizer's step."""
        if whole is not None:
            for _ in whole.before:
                yield run.step()
            return
        while run.taken < half or not stepped.lately:
            if run.taken == run.limit:
                raise NothingShown(f"no optimizer stepped within {run.limit} steps")
            stepped.lately = False
            yield run.step()

    def _resume(
        self, midst: _Midst, held: Mapping[str, Any], whole: _Run, carried: Collection[int]
    ) -> None:
        things = midst.things
        if [type(each).__name__ for each in things] != [name for _, name, _ in whole.names]:
            raise NothingShown("another build does not make the same models and optimizers")
        for each, state in zip(things, midst.as_built, strict=True):
            stateful.put_back(each, state)
        for name, value in held.items():
            value.load_state_dict(copy.deepcopy(whole.saved[name]))
        self.missing = [
            index
            for index, each in enumerate(things)
            if stateful.distance(stateful.look(each), whole.states[index]) > SAME
        ]
        for index in carried:
            stateful.put_back(things[index], whole.states[index])


def _noticing(midst: _Midst) -> Any:
    """Return a change of a setup that notes what it makes, and the states as built."""

    def change(setup: Setup) -> Setup:
        def changed(arm: Arm) -> Step:
            before = stateful.objects_with_state()
            step = setup(arm)
            midst.things = [arm.scaler, *stateful.made_since(before)]
            midst.as_built = [stateful.look(each) for each in midst.things]
            return step

        return changed

    return change


class _Stepped:
    """Notes that an optimizer has stepped; then its gradients are used up."""

    def __init__(self) -> None:
        self.lately = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        with OptimizerSteps(after=self._note):
            yield

    def _note(self, _: Any) -> None:
        self.lately = True


def _overflowing(run: DrilledArm) -> Any:
    """Return what makes the first scaled loss of the first step infinite."""
    done = False

    def around(original: Any, scaler: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal done
        scaled = original(scaler, *args, **kwargs)
        if done or run.taken > 1 or not scaler.is_enabled():
            return scaled
        done = True
        return infinite(scaled)

    return around


def _saved(value: Any) -> Any:
    return copy.deepcopy(value.state_dict())


def _furthest(one: Losses, other: Losses) -> float:
    return max(map(_difference, one, other), default=0.0)


def _difference(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Return by how much the losses of one step differ in two runs, relative to the larger."""
    return _relative(_furthest_pair(one, other))


def _furthest_pair(one: tuple[float, ...], other: tuple[float, ...]) -> tuple[float, float]:
    """Return the losses of one step that differ most, of those that it returned."""
    return max(zip(one, other, strict=True), key=_relative)


def _relative(pair: tuple[float, float]) -> float:
    are_finite = [math.isfinite(each) for each in pair]
    if pair[0] == pair[1] or not any(are_finite):
        return 0.0
    return abs(pair[0] - pair[1]) / max(map(abs, pair)) if all(are_finite) else math.inf
