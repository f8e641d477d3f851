"""Find what rounding does to updates of reduced tensors that a step found there.

Pointwise arithmetic on such a tensor, an average of weights or an accumulator, is repeated in
float64, from the value before the step to the last thing that is written into it. So a `mul_` and
an `add_` count as one update, and so does an average that is computed first and then copied. What
the arithmetic makes in float64 is compared with what the tensor holds at the end.

Of large tensors a sample is followed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from pytest_amp.lab.watch.events import OptimizerSteps
from pytest_amp.lab.watch.repeating import (
    DIFFERENCES,
    SCATTERED,
    WHOLE,
    Operator,
    one_by_one,
    operator,
    place_of,
    run_again,
    sampled,
    widened,
)
from pytest_amp.lab.watch.source import location
from pytest_amp.lab.watch.states import State, Value, counts, is_heir, note_compensation
from pytest_amp.lab.watch.tensors import (
    PLAIN,
    Tensors,
    dtype_name,
    is_reduced,
    memory,
    storage,
    tensors_in,
)
from pytest_amp.observations import StateUpdate

TEMPORARIES = 256


class _Call(NamedTuple):
    """One tensor's part of an operator's call, repeated before the call itself."""

    target: torch.Tensor | None
    result: _Result | None


class _Result(NamedTuple):
    """What a repeated call makes: fields of its `Value`, and whether it may show what was added."""

    exact: torch.Tensor | None
    nudged: Mapping[State, torch.Tensor]
    random: bool
    may_show_added: bool


_RANDOM = _Result(None, {}, True, False)


class Updates:
    """Repeats what is done to old reduced tensors. It is told of each call, before and after.

    What an optimizer does to its own parameters and state is left out.

    Args:
        is_new: whether the step has made this memory.
        optimizers: tells which optimizer is at work.
    """

    def __init__(self, is_new: Callable[[int], bool], optimizers: OptimizerSteps) -> None:
        self._is_new = is_new
        self._optimizers = optimizers
        self._owned: dict[Any, set[int]] = {}
        self._operators: dict[Any, Operator | None] = {}
        self._values: dict[tuple[Any, ...], Value] = {}
        self._states: list[State] = []
        self._seen: tuple[StateUpdate, ...] = ()

    def before(self, func: Any, args: Any, kwargs: Any, inputs: Tensors) -> list[_Call] | None:
        """Repeat the call, if it is one of those that are repeated.

        Args:
            func: the operator.
            args: its arguments.
            kwargs: its named arguments.
            inputs: the floating point tensors among these.
        """
        if func not in self._operators:
            self._operators[func] = operator(func)
        op = self._operators[func]
        if op is None or not (op.random or self._concerns(inputs)):
            return None
        calls = one_by_one(args, kwargs) if op.on_lists else [(args, kwargs)]
        return [self._repeated(op, list(a), dict(k)) for a, k in calls]

    def after(self, calls: list[_Call], out: Any) -> None:
        """Take note of what the call made."""
        made = out if isinstance(out, (list, tuple)) else [out] * len(calls)
        for call, each in zip(calls, made, strict=False):
            self._note(call, each if call.target is None else call.target)
        if len(self._values) > TEMPORARIES:
            self._values = {k: v for k, v in self._values.items() if not v.held.expired()}

    def end(self) -> None:
        """Compare, and let go of everything."""
        found: dict[tuple[str | None, str], StateUpdate] = {}
        for state, value in self._ends():
            wanted, lost = counts(state, value)
            line = state.location or value.location
            dtype = dtype_name(state.before.dtype)
            row = found.get((line, dtype), StateUpdate(dtype, line))
            times = state.numel / max(1, state.before.numel())
            found[line, dtype] = replace(
                row,
                elements=row.elements + state.numel,
                wanted=row.wanted + round(wanted * times),
                lost=row.lost + round(lost * times),
            )
        self._seen += tuple(found.values())
        self._states.clear()
        self._values.clear()

    def seen(self) -> tuple[StateUpdate, ...]:
        """Return the updates up to `end`, one for each line of the user's."""
        return self._seen

    def _concerns(self, inputs: Tensors) -> bool:
        """Return whether an old reduced tensor, or what came from one, is among the inputs."""
        return any(
            (is_reduced(tensor) and not self._is_new(storage(tensor)))
            or (self._values and place_of(tensor) in self._values)
            for tensor in inputs
            if (self._values or is_reduced(tensor)) and not self._is_an_optimizers(tensor)
        )

    def _is_an_optimizers(self, tensor: torch.Tensor) -> bool:
        """Return whether the tensor belongs to the optimizer that is at work."""
        optimizer = self._optimizers.working
        if optimizer is None:
            return False
        if optimizer not in self._owned:
            self._owned[optimizer] = set(map(storage, tensors_in(vars(optimizer))))
        return storage(tensor) in self._owned[optimizer]

    def _repeated(self, op: Operator, args: list[Any], kwargs: dict[str, Any]) -> _Call:
        """Repeat a call on one tensor; one that can't be repeated has no result."""
        target = args[0] if op.in_place else kwargs.pop("out", None)
        try:
            return _Call(target, self._result(op, target, args, kwargs))
        except (RuntimeError, TypeError):  # the call itself may fail, and says so then
            return _Call(target, None)

    def _result(
        self, op: Operator, target: Any, args: list[Any], kwargs: dict[str, Any]
    ) -> _Result | None:
        if op.random:
            return _RANDOM
        if op.name == "copy":  # what the target held does not matter
            args = args[1:2]
        tensors = list(tensors_in((args, kwargs)))
        if not all(type(each) in PLAIN for each in tensors):
            return None
        known = {id(each): self._value(each) for each in tensors}
        values = [value for value in known.values() if value is not None]
        states = list(dict.fromkeys(state for value in values for state in value.nudged))
        random = any(value.random for value in values)
        if not states:
            return _RANDOM if random else None
        is_whole = op.name in SCATTERED
        shape = (
            target.shape
            if op.name == "copy"
            else args[0].shape
            if is_whole
            else torch.broadcast_shapes(*(each.shape for each in tensors))
        )
        if is_whole and math.prod(shape) > WHOLE:
            return None

        def run(state: State | None) -> torch.Tensor:
            def wide(arg: Any) -> Any:
                if not isinstance(arg, torch.Tensor):
                    return arg
                value = known[id(arg)]
                if value is None or value.exact is None:
                    return widened(arg if is_whole else sampled(arg, shape))
                return value.exact if state is None else value.nudged.get(state, value.exact)

            return run_again(op.name, [*map(wide, args)], {k: wide(v) for k, v in kwargs.items()})

        exact = run(None)
        nudged = {each: run(each) for each in states if each.before.shape == exact.shape}
        shared = op.name in DIFFERENCES and any(
            sum(state in value.nudged for value in values) > 1 for state in nudged
        )
        return _Result(exact, nudged, random, shared)

    def _value(self, tensor: torch.Tensor) -> Value | None:
        """Return what is known of a tensor; one that is older than the step becomes a state."""
        if self._is_an_optimizers(tensor):
            return None
        place = place_of(tensor)
        value = self._values.get(place)
        if value is not None:
            if value.exact is None or torch.equal(value.actual, sampled(tensor, tensor.shape)):
                return value
            del self._values[place]  # something else has changed it
        held = memory(tensor)
        if held is None or not is_reduced(tensor) or self._is_new(place[0]):
            return None
        before = sampled(tensor, tensor.shape).clone()
        state = State(before, tensor.numel(), StorageWeakRef(held))
        exact = widened(before)
        value = Value(state.held, before, exact, {state: exact + state.nudge})
        self._states.append(state)
        self._values[place] = value
        return value

    def _note(self, call: _Call, made: Any) -> None:
        """Keep what is known of a tensor that an operator made or wrote into."""
        if type(made) not in PLAIN:
            return
        held, place, result = memory(made), place_of(made), call.result
        earlier = self._values.pop(place, None)
        if held is None or result is None:
            return
        if result.exact is None:
            self._values[place] = Value(StorageWeakRef(held), made.new_empty(0), random=True)
            return
        actual = sampled(made, made.shape).clone()
        if result.exact.shape != actual.shape:
            return
        line, nudged = location(), result.nudged
        if call.target is None and result.may_show_added:
            note_compensation(nudged, actual)
        if call.target is not None and not self._is_new(place[0]):
            own = _own(earlier, nudged)
            if own is None:  # it was overwritten, or is wide: nothing of it is lost
                return
            own.tensor, own.location = made, line
            own.at_random |= result.random
            nudged = {own: nudged[own]}
        self._values[place] = Value(
            StorageWeakRef(held), actual, result.exact, nudged, result.random, line
        )

    def _ends(self) -> Iterator[tuple[State, Value]]:
        """Yield the states that were updated or replaced, each with its value at the end."""
        for state in tuple(self._states):
            if state.at_random or state.compensated:
                continue
            if state.tensor is not None:
                value = self._values.get(place_of(state.tensor))
                if value and state in value.nudged and self._value(state.tensor) is value:
                    yield state, value
            elif state.held.expired():
                heirs = [v for v in self._values.values() if is_heir(v, state)]
                yield from [(state, heirs[-1])] if heirs else []


def _own(earlier: Value | None, nudged: Mapping[State, torch.Tensor]) -> State | None:
    """Return the state that was written into, if what was written was computed from it."""
    return next((state for state in earlier.nudged if state in nudged), None) if earlier else None
