"""An arm of the experiment: what `setup` receives, and the arm once it is built."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal
from weakref import WeakSet

import torch
from torch.optim import Optimizer

from pytest_amp.errors import AmpError, add_note, unless_our_bug
from pytest_amp.lab.machine.device import Device
from pytest_amp.lab.machine.global_state import GlobalState, seed_all
from pytest_amp.lab.scaling.scaler import AmpScaler, FixtureScaler
from pytest_amp.progress import Progress

__tracebackhide__ = unless_our_bug

ArmName = Literal["fp32", "amp"]
Step = Callable[[], Any]
_SHORT = {torch.float16: "fp16", torch.bfloat16: "bf16"}


class Arm:
    """One side of the comparison, handed to ``setup(arm)``.

    Attributes:
        name: ``"fp32"`` or ``"amp"``.
        enabled: whether this is the amp arm.
        device: the `torch.device` to build on.
        dtype: the dtype that autocast uses here; ``torch.float32`` in the fp32 arm.
        scaler: a `torch.amp.GradScaler`, enabled only for float16 in the amp arm.
    """

    def __init__(self, name: ArmName, device: Device, amp_dtype: torch.dtype) -> None:
        self.name = name
        self.enabled = name == "amp"
        self.device = device.torch
        self.dtype = amp_dtype if self.enabled else torch.float32
        self.scaler: torch.amp.GradScaler = AmpScaler(
            device.type, enabled=self.enabled and amp_dtype is torch.float16
        )
        self._teardown: list[Callable[[], object]] = []

    def pause_scaler_record(self) -> None:
        """Let the scaler keep no record of its scales and skips from here on."""
        if isinstance(self.scaler, AmpScaler):
            self.scaler.recording = False

    def __repr__(self) -> str:
        return f"<Arm {self.name} on {self.device}, {self.dtype}>"

    def autocast(self, *, cache_enabled: bool | None = None) -> AbstractContextManager[Any]:
        """``torch.autocast`` on this device in this dtype; does nothing in the fp32 arm.

        Args:
            cache_enabled: as torch.autocast takes it; False around what
                `torch.cuda.make_graphed_callables` captures.
        """
        if not self.enabled:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype, cache_enabled=cache_enabled)

    @property
    def mixed_precision(self) -> str:
        """``"no"``, ``"fp16"`` or ``"bf16"``, as Accelerate and the HF Trainer spell it."""
        return _SHORT[self.dtype] if self.enabled else "no"

    @property
    def lightning_precision(self) -> str:
        """``"32-true"``, ``"16-mixed"`` or ``"bf16-mixed"``, as Lightning spells it."""
        if not self.enabled:
            return "32-true"
        return "16-mixed" if self.dtype is torch.float16 else "bf16-mixed"

    def on_teardown(self, function: Callable[[], object]) -> None:
        """Call `function` when the arm is done with; the last one given is called first."""
        self._teardown.append(function)


Setup = Callable[[Arm], Step]


class Resident:
    """An arm that is built and in memory, with the globals that it set for itself."""

    def __init__(self, arm: Arm, bench: Workbench) -> None:
        self.arm = arm
        self._bench = bench
        self._step: Step | None = None
        self._state = bench.globals.capture()

    def build(self, setup: Setup) -> None:
        """Call `setup` and keep its step."""
        with self.active():
            step = setup(self.arm)
        if not callable(step):
            raise AmpError(
                f"setup(arm) returned {type(step).__name__}, not a callable: "
                "it must return the function that runs one training step"
            )
        self._step = step

    def step(self) -> Any:
        """One training step; call it inside `active`."""
        assert self._step is not None
        try:
            return self._step()
        except StopIteration as error:
            raise AmpError(
                f"the step ran out of data in {self._bench.progress.place()}: the experiment may "
                "call it without limit, so wrap the loader, for example itertools.cycle(loader)"
            ) from error
        except Exception as error:
            add_note(error, f"pytest-amp: raised in {self._bench.progress.place()}")
            if "Tried to step" in str(error) and "total steps" in str(error):
                add_note(
                    error,
                    "the schedule ran out: the experiment may call the step without limit, so "
                    "plan it for many more, for example total_steps=1_000_000",
                )
            raise
        finally:
            self._bench.steps += 1

    @contextmanager
    def active(self) -> Iterator[None]:
        """Put this arm's globals in force, and the caller's back afterwards.

        All but what it asked for with ``set_sync_debug_mode``, which our own reads would meet; that
        is for `as_asked`.
        """
        bench = self._bench
        outer = bench.globals.capture()
        bench.globals.apply(self._state)
        try:
            with bench.lending(self.arm.scaler), bench.device.sync_debug_mode(0):
                yield
        finally:
            self._state = bench.globals.capture()
            bench.globals.apply(outer)

    def as_asked(self) -> AbstractContextManager[None]:
        """Steps in which we read nothing tell of waiting for the device as the arm asked."""
        device = self._bench.device
        return device.sync_debug_mode(self._state.get(f"{device.type}.sync_debug_mode"))

    def close(self) -> list[Exception]:
        """Run what `on_teardown` asked for, all of it, and let the arm go; what was raised."""
        errors: list[Exception] = []
        with self.active():
            while self.arm._teardown:
                try:
                    self.arm._teardown.pop()()
                except Exception as error:  # noqa: BLE001 - all are called
                    errors.append(error)
            _let_go_of_graphs()
        self._step = None
        gc.collect()
        return errors


class Workbench:
    """What all arms of one test share: the device, the dtype, the seed and the user's setup.

    Attributes:
        notes: what the report has to say besides its figures; each phase appends its own.
    """

    def __init__(
        self,
        setup: Setup,
        device: Device,
        dtype: torch.dtype,
        seed: int,
        progress: Progress,
        fixture: FixtureScaler | None = None,
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.progress = progress
        self.notes: list[str] = []
        self.globals = GlobalState(device)
        # Weakly, because an arm that is gone takes its optimizers with it, and ids come again.
        self.optimizers_before: WeakSet[Optimizer] = WeakSet()
        self.builds = 0
        self.steps = 0
        self._alive = 0
        self._setup = setup
        self._seed = seed
        self._fixture = fixture

    @property
    def seed(self) -> int:
        return self._seed

    @contextmanager
    def built(
        self, name: ArmName, change: Callable[[Setup], Setup] = lambda setup: setup
    ) -> Iterator[Resident]:
        """An arm, built afresh from the seed by the setup or by another made of it, and closed."""
        self.builds += 1
        if not self._alive:
            _forget_compiled_code()
            gc.collect()  # what watched the arm before this one may hold it in cycles
        with self.globals.preserved():
            seed_all(self._seed)
            resident = Resident(Arm(name, self.device, self.dtype), self)
        self._alive += 1
        try:
            try:
                resident.build(change(self._setup))
            except Exception as error:
                if not isinstance(error, AmpError):
                    add_note(error, f"pytest-amp: raised in setup of the {name} arm")
                raise
            yield resident
        except BaseException as error:  # Ctrl-C too: a teardown that fails then must not hide it
            _note_all(error, resident.close())
            raise
        else:
            if errors := resident.close():
                first, *others = errors
                _note_all(first, others)
                raise first
        finally:
            self._alive -= 1
            if not self._alive:
                _forget_compiled_code()

    def lending(self, scaler: torch.amp.GradScaler) -> AbstractContextManager[None]:
        """While an arm runs, the `amp_scaler` fixture stands for that arm's scaler."""
        return nullcontext() if self._fixture is None else self._fixture.standing_for(scaler)


def _forget_compiled_code() -> None:
    """Let an arm compile like a process of its own.

    What earlier arms and tests compiled of the same class counts towards Dynamo's recompile limit,
    beyond which it runs eagerly without a word.
    """
    dynamo: Any = sys.modules.get("torch._dynamo")
    if dynamo is not None:
        dynamo.reset()


def _let_go_of_graphs() -> None:
    """Free the CUDA graphs that the active arm's compiled code has recorded."""
    trees: Any = sys.modules.get("torch._inductor.cudagraph_trees")
    if trees is not None and trees.get_obj(trees.local, "tree_manager_containers"):
        # It goes by a switch of the process, which is off where another arm's graphs went first.
        torch._C._set_cached_tensors_enabled(True)
        trees.reset_cudagraph_trees()


def _note_all(error: BaseException, others: list[Exception]) -> None:
    for other in others:
        add_note(error, f"pytest-amp: and raised in on_teardown: {type(other).__name__}: {other}")
