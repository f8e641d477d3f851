"""Record one step operator by operator, through a dispatch mode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import RLock
from time import perf_counter
from typing import Any, NamedTuple

import torch

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.backward_passes import BackwardPasses
from pytest_amp.lab.watch.callers import Callers
from pytest_amp.lab.watch.dispatch import DispatchMode
from pytest_amp.lab.watch.draws import Draws, draws, may_draw
from pytest_amp.lab.watch.events import OptimizerSteps, custom_functions, launches, subscribed
from pytest_amp.lab.watch.flops import Formula, formula, is_heavy, operator_name
from pytest_amp.lab.watch.modules import ModuleStack
from pytest_amp.lab.watch.regions import Regions
from pytest_amp.lab.watch.round_trips import RoundTrips
from pytest_amp.lab.watch.rows import Rows, summed
from pytest_amp.lab.watch.source import location
from pytest_amp.lab.watch.stale_casts import StaleCasts
from pytest_amp.lab.watch.tensors import (
    TO_COPY,
    Tensors,
    dtype_name,
    floats,
    is_reduced,
    size,
    storage,
)
from pytest_amp.lab.watch.threads import Threads
from pytest_amp.lab.watch.traffic import Traffic, traffic
from pytest_amp.lab.watch.uncounted import Uncounted
from pytest_amp.lab.watch.updates import Updates
from pytest_amp.lab.watch.weights import Weights
from pytest_amp.lab.watch.wide_values import WideValues, casts_up
from pytest_amp.observations import Operators, Phase

__tracebackhide__ = unless_our_bug


class _Kind(NamedTuple):
    """What is always so of an operator.

    Attributes:
        func: the operator.
        name: its name.
        formula: what counts its FLOPs, if anything does.
        traffic: what counts the bytes that it moves.
        is_heavy: whether it may hide FLOPs that nothing counts.
        may_draw: whether it can draw random numbers.
    """

    func: Any
    name: str
    formula: Formula | None
    traffic: Traffic
    is_heavy: bool
    may_draw: bool

    @classmethod
    def of(cls, func: Any) -> _Kind:
        name, counts = operator_name(func), formula(func)
        heavy = counts is None and is_heavy(name)
        return cls(func, name, counts, traffic(func, name), heavy, may_draw(func))


class OpRecord(DispatchMode):
    """Records one step, then looks for stale casts in the next ones. Read `operators` at the end.

    Compiled code runs eagerly meanwhile: fused kernels can't be seen, and a dispatch mode would
    keep torch from ever compiling what ran under it.

    Args:
        trained: parameters that are known beforehand. Those of the modules that run are found.
    """

    def __init__(self, trained: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recording = True
        self._over = False
        self._lock = RLock()  # several threads may be at work
        self._kinds: dict[int, _Kind] = {}
        self._weights = Weights(trained)
        self.modules = ModuleStack(self._weights.note_module)
        self._threads = Threads(self)
        self._optimizers = OptimizerSteps()
        self._callers = Callers(self._threads, self.modules)
        self._regions = Regions(self._threads)
        self._backwards = BackwardPasses()
        self._rows = Rows()
        self._uncounted = Uncounted(self._optimizers)
        self._draws = Draws()
        self._wide = WideValues(self._weights, self._threads)
        self._round_trips = RoundTrips()
        self._updates = Updates(self._weights.made.__contains__, self._optimizers)
        self._stale = StaleCasts(self._weights, self._threads, self.modules, self._optimizers)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Tell torch that nothing gets compiled meanwhile: it need not see to that at each call."""
        return False

    def next_step(self) -> None:
        """Stop recording; from here on only look for stale casts."""
        self._recording = False
        self._regions.end()
        self._updates.end()

    @property
    def has_cast_weights(self) -> bool:
        """Whether a weight was cast to a reduced dtype, so that the next step may use the cast."""
        return self._stale.has_casts

    def operators(self, returned: Sequence[float] = ()) -> Operators:
        """Return what was seen.

        Args:
            returned: the losses that the recorded step returned.
        """
        self._updates.end()
        rows = self._rows.counted(self._callers.composites.dtypes)
        steps_own = [row for row in rows if row.phase != "update"]
        return Operators(
            flops_by_dtype=summed(steps_own, "dtype", "flops"),
            bytes_by_dtype=summed(steps_own, "out", "bytes"),
            unknown=tuple(self._uncounted.unknown),
            hidden=tuple(self._uncounted.hidden),
            hidden_reduced=self._uncounted.reduced,
            random_dtypes=frozenset(self._draws.dtypes),
            draws=tuple(self._draws.digests),
            dropout_rates=tuple(sorted(self._draws.rates)),
            autocast_entered=self._regions.entered,
            autocast_devices=tuple(self._regions.devices),
            framework=self._regions.framework,
            reduced_weights=self._weights.reduced,
            rows=rows,
            stale=self._stale.found(),
            backward_at=self._backwards.at,
            backward_under_autocast=self._backwards.under_autocast,
            backward_under_autocast_at=self._backwards.under_autocast_at,
            backward_scale=self._backwards.scale(returned),
            updates=self._updates.seen(),
            round_trips=self._round_trips.found(),
            regions=self._regions.by_line(),
            draws_at=tuple(self._draws.places),
            dropout_at=self._draws.dropout_at,
        )

    def place_of(self, weight: torch.Tensor) -> str | None:
        """Return the user's line of the first forward operator that used the weight."""
        return self._weights.place_of(weight)

    @contextmanager
    def watching(self) -> Iterator[OpRecord]:
        """Record what runs inside."""
        torch.clear_autocast_cache()  # a region that is never left holds earlier casts
        with ExitStack() as stack:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(
                subscribed(
                    autocast_enter=self._regions.around_enter,
                    autocast_exit=self._regions.around_exit,
                    backward=self._around_backward,
                    cast=self._wide.around_cast,
                )
            )
            stack.enter_context(custom_functions(self._callers.around_function))
            stack.enter_context(self._callers.composites.followed())
            stack.enter_context(self._optimizers)
            stack.enter_context(launches(self._uncounted.note_hidden))
            stack.enter_context(self.modules)
            stack.enter_context(self._threads.followed())
            stack.enter_context(self)
            stack.callback(setattr, self, "_over", True)  # a thread may go on
            yield self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._over:
            return func(*args, **kwargs)
        inputs = floats((*args, *kwargs.values()))
        read = set(map(storage, inputs))
        with self._lock:
            self._stale.before(inputs, read)
            repeated = None
            if self._recording:
                repeated = self._updates.before(func, args, kwargs, inputs)
        began = perf_counter()
        out = func(*args, **kwargs)
        seconds = perf_counter() - began
        with self._lock:
            outputs = floats(out)
            written = [storage(each) for each in outputs]
            if self._recording:
                new = [size(e) for e, at in zip(outputs, written, strict=True) if at not in read]
                self._record(func, args, kwargs, inputs, outputs, read, new, out, seconds)
            self._wide.note(func, inputs, outputs, read)
            self._weights.note_made(read, written)
            self._stale.after(func, inputs, outputs)
            if repeated is not None:
                self._updates.after(repeated, out)
        return out

    def _record(
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        inputs: Tensors,
        outputs: Tensors,
        read: set[int],
        sizes: list[int],
        out: Any,
        seconds: float,
    ) -> None:
        here = self._threads.here
        is_update = self._optimizers.at_work  # an optimizer's own work is not the step's
        kind = self._kinds.get(id(func)) or self._kinds.setdefault(id(func), _Kind.of(func))
        # What several threads draw comes in no order.
        if kind.may_draw and here.sender is None and not is_update and draws(func, args, kwargs):
            self._draws.note(func, args, kwargs, inputs, outputs, out)
        if not inputs and not outputs:
            return
        count = 0
        if inputs and kind.formula is not None:
            count = int(kind.formula(*args, **kwargs, out_val=out))
        elif inputs and kind.is_heavy and not is_update:
            self._uncounted.note_unknown(kind.name, inputs, outputs)
        if count and is_reduced(inputs[0]) and not is_update:
            self._weights.note_reduced(inputs)
        module, phase, in_autocast, function, part_of, forward = self._callers.caller(
            here, is_update
        )
        chosen = lacking = computed = False
        if phase == "forward":
            is_cast_up = here.casting > 0 and casts_up(func, inputs, outputs)
            if is_cast_up:
                self._round_trips.begin(inputs, outputs, module)
            else:
                self._round_trips.note(func, inputs, outputs)
            self._weights.note_uses(read)
            chosen = is_cast_up if in_autocast else self._asks_for_float32(inputs, outputs, read)
            lacking = here.lacks_autocast
            computed = here.casting == 0 and self._is_computed(func, inputs)
            if here.entered:
                here.entered[-1].flops += count
                here.entered[-1].bytes += sum(sizes)
        dtype = dtype_name((inputs or outputs)[0].dtype)
        made = dtype_name(outputs[0].dtype) if outputs else None
        seen_as = chosen, lacking, computed
        composite = part_of and part_of.kind
        key = (kind.name, dtype, made, module, phase, in_autocast, function, composite, *seen_as)
        tally = self._rows.get(key) or self._rows.begin(key, self._line(phase, forward))
        moved = kind.traffic(args, inputs, outputs)
        tally.add(inputs, outputs, count, moved, sizes, seconds, part_of and part_of.number)

    def _asks_for_float32(self, inputs: Tensors, outputs: Tensors, read: set[int]) -> bool:
        """Return whether a call outside of autocast is there because the step wants float32."""
        here = self._threads.here
        is_off = bool(here.entered) and here.entered[-1].is_off_for(inputs or outputs)
        return here.island or is_off or self._wide.reach(read)

    def _is_computed(self, func: Any, inputs: Tensors) -> bool:
        """Return whether a cast's input was computed by the model, rather than given to it."""
        return func is TO_COPY and self._weights.any_computed(inputs)

    def _line(self, phase: Phase, forward: str | None) -> str | None:
        """Return the user's line of a call; in a backward pass, the line of the forward call."""
        if phase not in ("forward", "recompute"):
            return forward
        sender = self._threads.here.sender
        return location(sender.location if sender else None)

    def _around_backward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        if self._recording:
            self._round_trips.backward_begins()
            self._backwards.begins(args[0] if args else (), self._threads.here.autocast)
            self._regions.note_framework()
        return original(*args, **kwargs)
