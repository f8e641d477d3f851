"""Build arms, keep them in memory, and put back what they changed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from weakref import WeakSet

import torch
from torch.optim import Optimizer

from pytest_amp.errors import AmpError, add_note, unless_our_bug
from pytest_amp.lab.arm import Arm, ArmName, NoFloat16, Setup, Step, Suggest, first_of
from pytest_amp.lab.checkpoint import Checkpoint
from pytest_amp.lab.machine.compiled import forget_compiled_code, let_go_of_graphs
from pytest_amp.lab.machine.device import Device
from pytest_amp.lab.machine.global_state import GlobalState, Snapshot, quietly, seed_all
from pytest_amp.lab.machine.torch_globals import set_tf32
from pytest_amp.lab.scaling.scaler import FixtureScaler
from pytest_amp.lab.training import Steps
from pytest_amp.lab.watch.made import noted
from pytest_amp.progress import Progress
from pytest_amp.recipes import Recipes
from pytest_amp.results.values import RULES

__tracebackhide__ = unless_our_bug


# By whether the step is one of a whole training, whose schedule is planned for its own length.
_SCHEDULE_ENDED = {
    False: "the schedule ran out: the experiment may call the step without limit, so plan it for "
    "many more, for example total_steps=1_000_000",
    True: "the schedule ran out: before the training, the experiment runs its first steps, times "
    "and inspects them, which goes on behind the training's last batch; give the schedule an end "
    "that it stays at, for example by stepping it only while it has steps left",
}


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

    @property
    def made(self) -> Step:
        """The step that the setup made."""
        assert self._step is not None
        return self._step

    def build(self, setup: Setup) -> None:
        """Call `setup` and keep the step that it returns.

        Raises:
            AmpError: it returned something else than a function.
        """
        with self.active():
            step = setup(self.arm)
        if self.arm._told_in_vain:  # and a handler of the setup's caught what that raised
            raise NoFloat16
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
        with self.explained():
            return self.made()

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Explain what the user's code raises inside, which is one step.

        Raises:
            AmpError: it ran out of data.
        """
        try:
            yield
        except StopIteration as error:
            raise AmpError(
                f"the step ran out of data in {self._bench.progress.place()}: the experiment may "
                "call it without limit, so wrap the loader, for example itertools.cycle(loader)"
            ) from error
        except Exception as error:
            add_note(error, f"pytest-amp: raised in {self._bench.progress.place()}")
            if "Tried to step" in str(error) and "total steps" in str(error):
                add_note(error, _SCHEDULE_ENDED[isinstance(self._step, Steps)])
            raise
        finally:
            self._bench.steps += 1

    @contextmanager
    def active(self) -> Iterator[None]:
        """Apply this arm's global state inside, and restore the caller's afterwards.

        The arm's ``set_sync_debug_mode`` is left out, because it would warn of our own reads of the
        device; `as_asked` applies it.
        """
        turns = Turns(self._bench)
        try:
            with turns.of(self):
                yield
        finally:
            turns.end()

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


class Turns:
    """Lets arms run by turns, and changes global state only where another one's turn comes."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._running: Resident | None = None
        self._outer: Snapshot = {}

    @contextmanager
    def of(self, resident: Resident) -> Iterator[None]:
        """Apply an arm's global state inside. It stays in force until `end`, or another's turn."""
        bench = self._bench
        if self._running is not resident:
            self._leave(resident._state)
            self._running = resident
        with bench.lending(resident.arm.scaler), bench.device.sync_debug_mode(0):
            yield

    def end(self) -> None:
        """Restore the caller's global state."""
        if self._running is not None:
            self._leave(self._outer)
            self._running = None

    def _leave(self, state: Snapshot) -> None:
        left = self._bench.globals.swap(state)
        if self._running is None:
            self._outer = left
        else:
            self._running._state = left


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
        policy: whose rules autocast follows: ``native``, the device's own, or ``cuda`` on a CPU.
        assumed: whether nobody chose that.
        without_float16: whether an arm raises `NoFloat16` where it would tell a framework to take
            float16.
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
        self.policy = "native"
        self.assumed = False
        self.without_float16 = False
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
    def native_support(self) -> bool:
        """Whether the device whose rules are followed has a fast path for the dtype."""
        return self.policy == "cuda" or self.device.native_support(self.dtype)

    def flags(self) -> dict[str, Any]:
        """Return the switches that shift what a baseline means, as plain values for the report."""
        rules = f"{self.policy} (assumed)" if self.assumed else self.policy
        return {**({} if rules == "native" else {RULES: rules}), **self.globals.flags()}

    @property
    def seed(self) -> int:
        """The seed that each arm is built from."""
        return self._seed

    @contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """Build arms from another seed inside."""
        before, self._seed = self._seed, seed
        try:
            yield
        finally:
            self._seed = before

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
            arm = Arm(
                name,
                self.device,
                recipe,
                self.suggest,
                self.scaling,
                without_float16=self.without_float16,
            )
            resident = Resident(arm, self)
        self._alive += 1
        try:
            try:
                with noted():
                    resident.build(change(self._setup))
            except Exception as error:
                if not isinstance(error, AmpError):
                    add_note(error, f"pytest-amp: raised in setup of the {name} arm")
                if "AcceleratorState has already been initialized" in str(error):
                    add_note(
                        error,
                        "pytest-amp: an earlier test in this process made an Accelerator and left "
                        "its state behind: end that test with "
                        "AcceleratorState._reset_state(reset_partial_state=True)",
                    )
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
