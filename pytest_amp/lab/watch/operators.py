"""Record one step operator by operator, through a dispatch mode."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from threading import RLock
from time import perf_counter
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.watch.dispatch import DispatchMode
from pytest_amp.lab.watch.events import OptimizerSteps, custom_functions, launches, subscribed
from pytest_amp.lab.watch.fingerprint import digest_in_any_dtype
from pytest_amp.lab.watch.flops import flops, is_heavy, operator_name
from pytest_amp.lab.watch.modules import ModuleStack
from pytest_amp.lab.watch.round_trips import RoundTrips
from pytest_amp.lab.watch.source import framework, location
from pytest_amp.lab.watch.tensors import (
    dtype_name,
    floats,
    is_reduced,
    matrix_dims,
    memory,
    size,
    spread,
    storage,
    stretch,
    values,
)
from pytest_amp.lab.watch.threads import EnteredRegion, Threads
from pytest_amp.lab.watch.updates import Updates
from pytest_amp.observations import (
    FRAMEWORKS,
    REDUCED,
    Operators,
    OpRow,
    Phase,
    Region,
    StaleCast,
)

__tracebackhide__ = unless_our_bug


class OpRecord(DispatchMode):
    """Records one step, then looks for stale casts in the next ones. Read `operators` at the end.

    Compiled code runs eagerly meanwhile: fused kernels can't be seen, and a dispatch mode would
    keep torch from ever compiling what ran under it.

    Args:
        trained: parameters that are known beforehand. Those of the modules that run are found.
    """

    def __init__(self, trained: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.modules = ModuleStack(self._note_weights)
        self._recording = True
        self._over = False
        self._lock = RLock()  # several threads may be at work
        self._threads = Threads(self)
        self._rows: dict[tuple[Any, ...], _Tally] = {}
        self._unknown: dict[str, None] = {}
        self._hidden: dict[str, None] = {}
        self._hidden_reduced = False
        self._random: set[str] = set()
        self._draws: list[str] = []
        self._dropout_rates: set[float] = set()
        self._weights = {storage(tensor): tensor for tensor in trained}
        self._first_uses: dict[int, str | None] = {}
        self._made: set[int] = set()
        # Weak references keep storages' addresses from being reused for tensors that kernels make
        # and no dispatch mode sees.
        self._casts: dict[int, _Cast] = {}
        self._stale: dict[str, StaleCast] = {}
        self._from_weights: set[int] = set()
        self._regions: list[EnteredRegion] = []
        self._draws_at: list[str | None] = []
        self._dropout_at: str | None = None
        self._backward_at: str | None = None
        self._backward_under_autocast_at: str | None = None
        self._widened: set[int] = set()
        self._autocast_entered = 0
        self._autocast_devices: dict[str, None] = {}
        self._framework: str | None = None
        self._backward_under_autocast = 0
        self._roots: list[torch.Tensor] = []
        self._reduced_weights = False
        self._optimizers = OptimizerSteps()
        self._function_nodes: dict[str, str] = {}
        self._callers: dict[int, tuple[str | None, bool, str | None]] = {}
        self._last_node = -1
        self._round_trips = RoundTrips()
        self._updates = Updates(self._made.__contains__, self._optimizers)

    def next_step(self) -> None:
        """Stop recording; from here on only look for stale casts."""
        self._recording = False
        self._updates.end()

    def operators(self, returned: Sequence[float] = ()) -> Operators:
        """Return what was seen.

        Args:
            returned: the losses that the recorded step returned.
        """
        self._updates.end()
        rows = tuple(tally.row() for tally in self._rows.values())
        steps_own = [row for row in rows if row.phase != "update"]
        return Operators(
            flops_by_dtype=_summed(steps_own, "dtype", "flops"),
            bytes_by_dtype=_summed(steps_own, "out", "bytes"),
            unknown=tuple(self._unknown),
            hidden=tuple(self._hidden),
            hidden_reduced=self._hidden_reduced,
            random_dtypes=frozenset(self._random),
            draws=tuple(self._draws),
            dropout_rates=tuple(sorted(self._dropout_rates)),
            autocast_entered=self._autocast_entered,
            autocast_devices=tuple(self._autocast_devices),
            framework=self._framework,
            reduced_weights=self._reduced_weights,
            rows=rows,
            stale=tuple(self._stale.values()),
            backward_at=self._backward_at,
            backward_under_autocast=self._backward_under_autocast,
            backward_under_autocast_at=self._backward_under_autocast_at,
            backward_scale=_scale_of(self._roots, returned),
            updates=self._updates.seen(),
            round_trips=self._round_trips.found(),
            regions=_by_line(self._regions),
            draws_at=tuple(self._draws_at),
            dropout_at=self._dropout_at,
        )

    def place_of(self, weight: torch.Tensor) -> str | None:
        """Return the user's line of the first forward operator that used the weight."""
        return self._first_uses.get(storage(weight))

    @contextmanager
    def watching(self) -> Iterator[OpRecord]:
        """Record what runs inside."""
        torch.clear_autocast_cache()  # a region that is never left holds earlier casts
        with ExitStack() as stack:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(
                subscribed(
                    autocast_enter=self._around_enter,
                    autocast_exit=self._around_exit,
                    backward=self._around_backward,
                    cast=self._around_cast,
                )
            )
            stack.enter_context(custom_functions(self._around_function))
            stack.enter_context(self._optimizers)
            stack.enter_context(launches(self._note_hidden))
            stack.enter_context(self.modules)
            stack.enter_context(self._threads.followed())
            stack.enter_context(self)
            stack.callback(setattr, self, "_over", True)  # a thread may go on
            yield self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._over:
            return func(*args, **kwargs)
        inputs = floats((args, kwargs))
        with self._lock:
            self._look_for_stale(inputs)
            repeated = self._updates.before(func, args, kwargs) if self._recording else None
        began = perf_counter()
        out = func(*args, **kwargs)
        seconds = perf_counter() - began
        with self._lock:
            self._look_at(func, args, kwargs, inputs, out, seconds)
            if repeated is not None:
                self._updates.after(repeated, out)
        return out

    def _look_at(
        self, func: Any, args: Any, kwargs: Any, inputs: Tensors, out: Any, seconds: float
    ) -> None:
        outputs = floats(out)
        if self._recording:
            self._record(func, args, kwargs, inputs, outputs, out, seconds)
        self._note_wide(func, inputs, outputs)
        known = {storage(tensor) for tensor in inputs}
        reads_weights = not known.isdisjoint(self._weights)
        for tensor in outputs:
            place = storage(tensor)
            if place not in known:
                self._made.add(place)
                note = self._from_weights.add if reads_weights else self._from_weights.discard
                note(place)
        if func is torch.ops.aten._to_copy.default and outputs and is_reduced(outputs[0]):
            weight = self._weights.get(storage(inputs[0])) if inputs else None
            if weight is not None:
                held = memory(outputs[0])
                if held is not None:
                    within = self._threads.here.entered
                    self._casts[storage(outputs[0])] = _Cast(
                        StorageWeakRef(held), ref(weight), weight._version, *within[:1]
                    )

    def _record(
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        inputs: Tensors,
        outputs: Tensors,
        out: Any,
        seconds: float,
    ) -> None:
        here = self._threads.here
        is_update = self._optimizers.at_work  # an optimizer's own work is not the step's
        # What several threads draw comes in no order.
        if here.sender is None and _draws(func, args, kwargs) and not is_update:
            self._random.update(dtype_name(t.dtype) for t in (*outputs, *inputs))
            self._draws.append(_drawn(out))
            self._draws_at.append(location())
            rates = list(_dropout_rate(func, args, kwargs))
            self._dropout_rates.update(rates)
            if rates:
                self._dropout_at = self._dropout_at or self._draws_at[-1]
        if not inputs and not outputs:
            return
        name = operator_name(func)
        count = flops(func, args, kwargs, out) if inputs else None
        if count is None and inputs and is_heavy(name) and not is_update:
            self._unknown[name] = None
            self._hidden_reduced |= any(map(is_reduced, (*inputs, *outputs)))
        if count and is_reduced(inputs[0]) and not is_update:
            self._reduced_weights |= any(map(self._is_weight, filter(is_reduced, inputs)))
        known = {storage(tensor) for tensor in inputs}
        sizes = [size(each) for each in outputs if storage(each) not in known]
        module, phase, in_autocast, function, forward = self._caller()
        if phase == "forward":
            if here.casting and _casts_up(func, inputs, outputs):
                self._round_trips.begin(inputs, outputs, module)
            else:
                self._round_trips.note(func, inputs, outputs)
            for used in (known & self._weights.keys()) - self._first_uses.keys():
                self._first_uses[used] = location()
        within = here.entered[-1] if here.entered else None
        is_off = within is not None and within.is_off_for(inputs or outputs)
        chosen = phase == "forward" and (
            here.island or is_off or self._is_wide(inputs)
            if not in_autocast
            else here.casting > 0 and _casts_up(func, inputs, outputs)
        )
        computed = here.casting == 0 and phase == "forward" and self._is_computed(func, inputs)
        if within is not None and phase == "forward":
            within.flops += count or 0
            within.bytes += sum(sizes)
        dtype = dtype_name((inputs or outputs)[0].dtype)
        made = dtype_name(outputs[0].dtype) if outputs else None
        lacking = phase == "forward" and here.lacks_autocast
        key = (name, dtype, made, module, phase, in_autocast, function, chosen, lacking, computed)
        tally = self._rows.get(key)
        if tally is None:
            sent_from = here.sender.location if here.sender else None
            where = location(sent_from) if phase in ("forward", "recompute") else forward
            row = OpRow(
                name, dtype, made, module, phase, in_autocast, function,
                location=where, chosen=chosen, lacks_autocast=lacking, computed=computed,
            )  # fmt: skip
            tally = self._rows[key] = _Tally(row)
        tally.count += 1
        tally.seconds += seconds
        tally.flops += count or 0
        tally.bytes += sum(sizes)
        tally.largest = max(tally.largest, *sizes, 0)
        if count:
            tally.dims.update(matrix_dims(name, inputs, outputs))
        elif name == "aten::_to_copy" and inputs:
            tally.stretch = max(tally.stretch, stretch(inputs[0]))

    def _caller(self) -> tuple[str | None, Phase, bool, str | None, str | None]:
        """Return the module, the phase, whether autocast is in force, and the custom function.

        In a backward pass, the line of the forward call follows.
        """
        here = self._threads.here
        inside = here.functions[-1] if here.functions else None
        call = self.modules.top
        if self._optimizers.at_work:
            return None, "update", False, inside, None
        if torch._C._current_graph_task_id() == -1 or (call is not None and call.again):
            path = call.path if call is not None else None
            node_made = _next_node()
            # Each thread numbers its own nodes. The first call to see a new node made it.
            if here.sender is None and node_made != self._last_node:
                self._last_node = node_made
                self._callers[node_made - 1] = path, here.autocast, location()
            phase: Phase = "recompute" if call is not None and call.again else "forward"
            return path, phase, here.autocast, inside, None
        node: Any = torch._C._current_autograd_node()
        if node is None:
            return None, "backward", False, inside, None
        path, in_autocast, line = self._callers.get(node._sequence_nr(), (None, False, None))
        inside = inside or self._function_nodes.get(node.name())
        return path, "backward", in_autocast, inside, line

    def _look_for_stale(self, inputs: Tensors) -> None:
        """Note where a cast is used although its weight has been updated since."""
        for tensor in inputs:
            cast = self._casts.get(storage(tensor))
            if cast is None or not is_reduced(tensor):
                continue
            weight = cast.weight()
            if weight is None or weight._version == cast.version or self._optimizers.at_work:
                continue
            if torch._C._current_graph_task_id() != -1:
                continue  # a backward pass needs the weights of its forward pass
            used, now = values(tensor), values(weight)
            if used is None or now is None:
                continue
            if not torch.equal(spread(used), spread(now.to(used.dtype))):
                self._note_stale(weight, cast)

    def _note_stale(self, weight: torch.Tensor, cast: _Cast) -> None:
        module = self.modules.path() or "outside of modules"
        if module not in self._stale:
            outermost = self._threads.here.entered[:1]
            within = outermost and outermost[0] is cast.region
            self._stale[module] = StaleCast(
                module,
                self.modules.parameter_names().get(id(weight)),
                location(),
                outermost[0].location if within else None,
            )

    def _is_computed(self, func: Any, inputs: Tensors) -> bool:
        """Return whether a cast's input was computed by the model, rather than given to it."""
        return func is torch.ops.aten._to_copy.default and any(
            storage(each) not in self._weights
            and (each.requires_grad or storage(each) in self._from_weights)
            for each in inputs
        )

    def _is_wide(self, inputs: Tensors) -> bool:
        """Return whether the inputs come from what the step has cast up, and none is a weight."""
        places = set(map(storage, inputs))
        return not places.isdisjoint(self._widened) and places.isdisjoint(self._weights)

    def _note_wide(self, func: Any, inputs: Tensors, outputs: Tensors) -> None:
        """Follow what was cast up through the operators that it goes into."""
        is_wide = _casts_up(func, inputs, outputs) or self._is_wide(inputs)
        for tensor in outputs:
            note = (
                self._widened.add if is_wide and not is_reduced(tensor) else self._widened.discard
            )
            note(storage(tensor))

    def _is_weight(self, tensor: torch.Tensor) -> bool:
        """Return whether the tensor is a weight.

        If neither modules nor optimizers have shown any, whatever was there before the step counts.
        """
        place = storage(tensor)
        return place in self._weights if self._weights else place not in self._made

    def _note_weights(self, module: torch.nn.Module) -> None:
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            self._weights.setdefault(storage(tensor), tensor)

    def _around_enter(self, original: Any, region: Any, *args: Any) -> Any:
        in_force = region._enabled and dtype_name(region.fast_dtype) in REDUCED
        if self._recording:
            self._autocast_entered += in_force
            self._autocast_devices[region.device] = None
            self._note_framework()
        here = self._threads.here
        dtype = dtype_name(region.fast_dtype) if in_force else None
        entered = EnteredRegion(location(), region.device, dtype, here.autocast or here.island)
        here.entered.append(entered)
        if self._recording:
            self._regions.append(entered)
        here.regions.append((here.autocast, here.island))
        here.island = not in_force and (here.autocast or here.island)
        here.autocast = in_force
        return original(region, *args)

    def _note_framework(self) -> None:
        self._framework = self._framework or framework(FRAMEWORKS)

    def _around_exit(self, original: Any, region: Any, *args: Any) -> Any:
        here = self._threads.here
        here.autocast, here.island = here.regions.pop() if here.regions else (False, False)
        del here.entered[-1:]
        return original(region, *args)

    def _around_cast(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        here = self._threads.here
        here.casting += 1
        try:
            return original(*args, **kwargs)
        finally:
            here.casting -= 1

    def _around_backward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        if self._recording:
            self._round_trips.backward_begins()
            self._backward_at = self._backward_at or location()
            if self._threads.here.autocast:
                self._backward_under_autocast += 1
                at = self._backward_under_autocast_at
                self._backward_under_autocast_at = at or location()
            self._note_framework()
            roots = args[0] if args else ()
            self._roots += [root.detach().clone() for root in roots if root.numel() == 1]
        return original(*args, **kwargs)

    @contextmanager
    def _around_function(self, cls: type) -> Iterator[None]:
        name = cls.__name__
        self._function_nodes[f"{name}Backward"] = name
        functions = self._threads.here.functions
        functions.append(name)
        try:
            yield
        finally:
            functions.pop()

    def _note_hidden(self, what: str) -> None:
        """Note work that bypassed the dispatcher."""
        if not self._optimizers.at_work:
            self._hidden[what] = None
            self._hidden_reduced = True


Tensors = list[torch.Tensor]


def _casts_up(func: Any, inputs: Tensors, outputs: Tensors) -> bool:
    return (
        func is torch.ops.aten._to_copy.default
        and any(map(is_reduced, inputs))
        and not any(map(is_reduced, outputs))
    )


class _Cast(NamedTuple):
    """A weight's cast.

    Attributes:
        held: its memory.
        weight: the weight.
        version: how often the weight had been changed when it was cast.
        region: the outermost autocast region that it was made in.
    """

    held: StorageWeakRef
    weight: ref[torch.Tensor]
    version: int
    region: EnteredRegion | None = None


def _by_line(regions: Sequence[EnteredRegion]) -> tuple[Region, ...]:
    """Return the regions, one for all that one line entered alike."""
    found: dict[tuple[Any, ...], Region] = {}
    for each in regions:
        key = (each.location, each.device, each.dtype, each.nested)
        known = found.get(key, Region(*key))
        flops, made = known.flops + each.flops, known.bytes + each.bytes
        found[key] = replace(known, flops=flops, bytes=made)
    return tuple(found.values())


class _Tally:
    """A row that is still being counted."""

    def __init__(self, row: OpRow) -> None:
        self._row = row
        self.count = self.flops = self.bytes = self.largest = 0
        self.stretch = 1
        self.seconds = 0.0
        self.dims: set[int] = set()

    def row(self) -> OpRow:
        return replace(
            self._row,
            count=self.count,
            flops=self.flops,
            bytes=self.bytes,
            largest=self.largest,
            stretch=self.stretch,
            seconds=self.seconds,
            dims=tuple(sorted(self.dims)),
        )


def _scale_of(roots: Sequence[torch.Tensor], returned: Sequence[float]) -> float | None:
    """Return the largest loss of a backward pass / the largest loss that was returned."""
    largest = max((abs(loss) for loss in returned), default=0.0)
    passed = max((abs(float(root)) for root in roots), default=0.0)
    return passed / largest if largest and passed and math.isfinite(passed / largest) else None


def _summed(rows: Iterable[OpRow], key: str, what: str) -> dict[str, int]:
    """Sum one column by the values of another, leaving out sums of zero."""
    total: dict[str, int] = {}
    for row in rows:
        amount = getattr(row, what)
        if amount:
            total[getattr(row, key)] = total.get(getattr(row, key), 0) + amount
    return total


def _draws(func: Any, args: Any, kwargs: Any) -> bool:
    """Return whether the call draws random numbers; fused attention without dropout does not."""
    if torch.Tag.nondeterministic_seeded not in getattr(func, "tags", ()):
        return False
    for index, argument in enumerate(func._schema.arguments):
        if argument.name in ("dropout_p", "dropout"):
            given = args[index] if index < len(args) else kwargs.get(argument.name)
            return bool(argument.default_value if given is None else given)
    return True


def _dropout_rate(func: Any, args: Any, kwargs: Any) -> Iterator[float]:
    """Yield the probability with which the call drops elements, if it draws a mask of them.

    torch leaves an argument out that is its default.
    """
    for index, argument in enumerate(func._schema.arguments):
        if argument.name in ("dropout_p", "dropout", "p"):
            named = kwargs.get(argument.name, argument.default_value)
            given = args[index] if index < len(args) else named
            if isinstance(given, float):
                keeps = "bernoulli" in func._schema.name
                yield round(1 - given if keeps else given, 6)


def _drawn(out: Any) -> str:
    """Digest what was drawn, by value and place; a 0/1 mask gets the same digest in any dtype."""
    tensors = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, torch.Tensor)]
    masks = [tensor for tensor in tensors if tensor.dtype is torch.bool]
    return " ".join(digest_in_any_dtype(tensor) for tensor in masks or tensors)


def _next_node() -> int:
    number: Any = torch._C._autograd._get_sequence_nr()
    return int(number)
