"""The arms of an experiment: what `setup` receives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import torch

from pytest_amp.errors import AmpError, unless_our_bug
from pytest_amp.lab.checkpoint import Checkpoint, checkpoint_of
from pytest_amp.lab.loop import Loop, Run
from pytest_amp.lab.machine.device import Device
from pytest_amp.lab.prepare import prepared
from pytest_amp.lab.scaling.scaler import AmpScaler
from pytest_amp.recipes import Recipe

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


class NoFloat16(BaseException):
    """A setup is about to tell a framework to take float16 on a CPU, which none of them does.

    The experiment begins anew in bfloat16, so no handler of the setup's own may catch this.
    """


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
        *,
        without_float16: bool = False,
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
        self._without_float16, self._told_in_vain = without_float16, False
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
        self._tell_a_framework()
        return _ACCELERATES[self.recipe.autocast_dtype]

    @property
    def lightning_precision(self) -> str:
        """``"32-true"``, ``"bf16-mixed"``, ``"bf16-true"`` and so on, as Lightning spells it."""
        self._tell_a_framework()
        return f"{_LIGHTNINGS[self.recipe.dtype]}-{'mixed' if self.enabled else 'true'}"

    def _tell_a_framework(self) -> None:
        if self._without_float16 and self.recipe.autocast_dtype == "float16":
            self._told_in_vain = True
            raise NoFloat16

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
