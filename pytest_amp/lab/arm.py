"""The arms of an experiment: what `setup` receives, and what it builds."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MappingProxyType
from typing import Any, Literal, TypeVar
from weakref import WeakSet

import torch
from torch.optim import Optimizer

from pytest_amp.errors import AmpError, add_note, unless_our_bug
from pytest_amp.lab.checkpoint import Checkpoint, checkpoint_of
from pytest_amp.lab.loop import Loop, Run
from pytest_amp.lab.machine.compiled import forget_compiled_code, let_go_of_graphs
from pytest_amp.lab.machine.device import Device
from pytest_amp.lab.machine.global_state import GlobalState, quietly, seed_all
from pytest_amp.lab.machine.torch_globals import set_tf32
from pytest_amp.lab.prepare import prepared
from pytest_amp.lab.scaling.scaler import AmpScaler, FixtureScaler
from pytest_amp.lab.watch.made import noted
from pytest_amp.progress import Progress
from pytest_amp.recipes import Recipe, Recipes

__tracebackhide__ = unless_our_bug

ArmName = Literal["fp32", "amp"]
Step = Callable[[], Any]
M = TypeVar("M", bound=torch.nn.Module)
T = TypeVar("T")
Suggest = Callable[[str, Sequence[Any]], Any]
_ACCELERATES = {None: "no", "float16": "fp16", "bfloat16": "bf16"}
_LIGHTNINGS = {"float16": "16", "bfloat16": "bf16", "float32": "32"}


def first_of(_: str, values: Sequence[T]) -> T:
    """Suggest the first value."""
    return values[0]


class Arm:
    """One side of the comparison, which ``setup(arm)`` receives.

    Attributes:
        name (str): ``"fp32"``, which is the reference, or ``"amp"``, which is the candidate.
        recipe (Recipe): how this arm computes.
        enabled (bool): whether that is under autocast.
        device (torch.device): the device to build on.
        dtype (torch.dtype): the dtype that autocast uses here; without autocast, the one that the
            model is kept in.
        scaler (torch.amp.GradScaler): a scaler that is enabled only for autocast in float16.
    """

    def __init__(
        self,
        name: ArmName,
        device: Device,
        recipe: Recipe,
        suggest: Suggest = first_of,
        scaling: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.name = name
        self.recipe = recipe
        self.enabled = recipe.autocast_dtype is not None
        self.device = device.torch
        self.dtype: torch.dtype = getattr(torch, recipe.dtype)
        self.scaler: torch.amp.GradScaler = AmpScaler(
            device.type, enabled=recipe.autocast_dtype == "float16", **scaling
        )
        self._suggest = suggest
        self._saved: Checkpoint | None = None
        self._teardown: list[Callable[[], object]] = []

    def pause_scaler_record(self) -> None:
        """Stop recording the scaler's scales and skipped steps."""
        if isinstance(self.scaler, AmpScaler):
            self.scaler.recording = False

    def __repr__(self) -> str:
        return f"<Arm {self.name} on {self.device}, {self.recipe}>"

    def autocast(self, *, cache_enabled: bool | None = None) -> AbstractContextManager[Any]:
        """Return ``torch.autocast`` as the recipe has it; without autocast it does nothing.

        Args:
            cache_enabled: the argument of the same name of `torch.autocast`. Pass False around code
                that `torch.cuda.make_graphed_callables` captures.
        """
        if not self.enabled:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype, cache_enabled=cache_enabled)

    @property
    def mixed_precision(self) -> str:
        """``"no"``, ``"fp16"`` or ``"bf16"``, as Accelerate and the HF Trainer spell it."""
        return _ACCELERATES[self.recipe.autocast_dtype]

    @property
    def lightning_precision(self) -> str:
        """``"32-true"``, ``"bf16-mixed"``, ``"bf16-true"`` and so on, as Lightning spells it."""
        return f"{_LIGHTNINGS[self.recipe.dtype]}-{'mixed' if self.enabled else 'true'}"

    def prepare(self, model: M) -> M:
        """Cast, lay out, convert and compile a model as the recipe has it, and return it.

        The model is changed in place. Its parameters stay the same objects, so an optimizer may be
        made before or after. A model that is kept in a reduced dtype from now on casts its floating
        point inputs.

        Args:
            model: the model, on its device. Linear layers are converted to float8 only if their
                features are multiples of 16.

        Raises:
            AmpError: the recipe needs what is not installed.
        """
        return prepared(model, self.recipe, self.device)

    def checkpoint(self, **state: Any) -> None:
        """Say in ``setup`` what your checkpoint holds; a drill resumes from just that (AMP212).

        For example ``arm.checkpoint(model=model, optimizer=optimizer, scaler=arm.scaler)``.

        Args:
            state: each value has a ``state_dict()`` and a ``load_state_dict()``. They are loaded in
                this order.

        Raises:
            AmpError: a value has no such methods.
        """
        self._saved = checkpoint_of(state, self._saved)

    def suggest(self, name: str, values: Sequence[T]) -> T:
        """Return one of the values: the first, or the one that ``pytest-amp tune`` tries.

        For example ``batch_size = arm.suggest("batch_size", (32, 64, 128))``. Both arms of a trial
        get the same value. Trials with a ``batch_size`` are compared by their time per example.

        Args:
            name: what the value is.
            values: what it may be: numbers, texts, truth values or None.

        Raises:
            AmpError: there is nothing to choose from, or a name is asked for with other values than
                before.
        """
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise AmpError(
                f"arm.suggest({name!r}, values) takes a sequence of one or more values, such as "
                f"(32, 64), not {values!r}"
            )
        suggested: T = self._suggest(name, values)
        return suggested

    def loop(self, run: Run) -> Step:
        """Return a step for ``setup`` to return, if a training loop of somebody else's is measured.

        For example ``arm.loop(train)``, where ``train(tick)`` runs a trainer whose callback calls
        ``tick(loss)``. The loop is stopped at each tick, goes on where the experiment asks for the
        next step, and is unwound when the arm is no longer needed: ``tick`` then raises a
        `BaseException`. Let it train without limit.

        Args:
            run: is called once with ``tick``, and calls ``tick(loss)`` after every optimizer step.

        Raises:
            AmpError: greenlet, which this needs, is not installed.
        """
        loop = Loop(run)
        self.on_teardown(loop.close)
        return loop

    def on_teardown(self, function: Callable[[], object]) -> None:
        """Register a function to call when the arm is no longer needed.

        The last function that was registered is called first. Use it for what outlives the step,
        such as the workers of a data loader.

        Args:
            function: is called without arguments; what it returns is ignored.
        """
        self._teardown.append(function)


Setup = Callable[[Arm], Step]


class Resident:
    """An arm that is built and in memory, with the global state that it set for itself.

    Made inside of `GlobalState.preserved`, since its recipe puts some of that state in force.
    """

    def __init__(self, arm: Arm, bench: Workbench) -> None:
        self.arm = arm
        self._bench = bench
        self._step: Step | None = None
        with quietly():
            set_tf32(on=arm.recipe.matmul == "tf32")
        self._state = bench.globals.capture()

    @property
    def checkpoint(self) -> Checkpoint | None:
        """What ``arm.checkpoint()`` was told; None if it was not called."""
        return self.arm._saved

    def build(self, setup: Setup) -> None:
        """Call `setup` and keep the step that it returns.

        Raises:
            AmpError: it returned something else than a function.
        """
        with self.active():
            step = setup(self.arm)
        if not callable(step):
            raise AmpError(
                f"setup(arm) returned {type(step).__name__}, not a callable: "
                "it must return the function that runs one training step"
            )
        self._step = step

    def step(self) -> Any:
        """Run one training step and return what it returns; call this inside `active`.

        Raises:
            AmpError: the step ran out of data.
        """
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
        """Apply this arm's global state inside, and restore the caller's afterwards.

        The arm's ``set_sync_debug_mode`` is left out, because it would warn of our own reads of the
        device; `as_asked` applies it.
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
        """Apply the arm's own sync debug mode, for steps in which we don't read from the device."""
        device = self._bench.device
        return device.sync_debug_mode(self._state.get(f"{device.type}.sync_debug_mode"))

    def close(self) -> list[Exception]:
        """Call all functions given to `on_teardown`, and release the arm.

        Returns:
            The exceptions that the functions raised.
        """
        errors: list[Exception] = []
        with self.active():
            while self.arm._teardown:
                try:
                    self.arm._teardown.pop()()
                except Exception as error:  # noqa: BLE001 - all are called
                    errors.append(error)
            let_go_of_graphs()
        self._step = self.arm._saved = None
        gc.collect()
        return errors


class Workbench:
    """What all arms of one test share: the device, the dtype, the seed and the user's setup.

    Attributes:
        device: the device that is measured.
        recipes: how each arm computes.
        progress: is told what runs, for the live line.
        notes: the report's notes; each phase appends its own.
        globals: captures and restores global state.
        optimizers_before: the optimizers that earlier arms trained with.
        untimed: why timing would say nothing here; None if it would not.
        suggest: chooses one of the values that a setup offers by ``arm.suggest``.
        scaling: the arguments of the arms' scalers.
        builds: how many arms were built.
        steps: how many of the user's steps were run.
    """

    def __init__(
        self,
        setup: Setup,
        device: Device,
        recipes: Recipes,
        seed: int,
        progress: Progress,
        fixture: FixtureScaler | None = None,
    ) -> None:
        self.device = device
        self.recipes = recipes
        self.progress = progress
        self.notes: list[str] = []
        self.globals = GlobalState(device)
        # Weak references, because an optimizer may die with its arm, and ids are reused.
        self.optimizers_before: WeakSet[Optimizer] = WeakSet()
        self.untimed: str | None = None
        self.suggest: Suggest = first_of
        self.scaling: Mapping[str, Any] = {}
        self.builds = 0
        self.steps = 0
        self._alive = 0
        self._setup = setup
        self._seed = seed
        self._fixture = fixture

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the candidate's linear layers compute in."""
        dtype: torch.dtype = getattr(torch, self.recipes.amp.dtype)
        return dtype

    @property
    def precision(self) -> torch.dtype:
        """The reduced dtype by whose rounding the arms' differences are judged."""
        dtype: torch.dtype = getattr(torch, self.recipes.precision)
        return dtype

    @property
    def seed(self) -> int:
        """The seed that each arm is built from."""
        return self._seed

    @contextmanager
    def built(
        self, name: ArmName, change: Callable[[Setup], Setup] = lambda setup: setup
    ) -> Iterator[Resident]:
        """Build an arm from the seed, and close it afterwards.

        Args:
            name: which arm.
            change: makes another setup from the user's, which is then used instead.

        Raises:
            Exception: whatever the setup, the code inside, or a teardown function raised. Of
                several exceptions the first one is raised, and the others are notes on it.
        """
        self.builds += 1
        if not self._alive:
            forget_compiled_code()
            gc.collect()  # reference cycles may keep the previous arm alive
        with self.globals.preserved():
            seed_all(self._seed)
            recipe = getattr(self.recipes, name)
            arm = Arm(name, self.device, recipe, self.suggest, self.scaling)
            resident = Resident(arm, self)
        self._alive += 1
        try:
            try:
                with noted():
                    resident.build(change(self._setup))
            except Exception as error:
                if not isinstance(error, AmpError):
                    add_note(error, f"pytest-amp: raised in setup of the {name} arm")
                raise
            yield resident
        except BaseException as error:  # a failing teardown must not hide Ctrl-C either
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
                forget_compiled_code()

    def lending(self, scaler: torch.amp.GradScaler) -> AbstractContextManager[None]:
        """Make the `amp_scaler` fixture act as this scaler inside, if the test has the fixture."""
        return nullcontext() if self._fixture is None else self._fixture.standing_for(scaler)


def _note_all(error: BaseException, others: list[Exception]) -> None:
    for other in others:
        add_note(error, f"pytest-amp: and raised in on_teardown: {type(other).__name__}: {other}")
