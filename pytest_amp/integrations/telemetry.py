"""What the telemetry of each framework has in common: rhythm, loggers, and that it does no harm.

Telemetry runs in real trainings, for days: whatever goes wrong in it is told once, and the training
goes on.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from pytest_amp.errors import AmpError
from pytest_amp.lab.telemetry import Meter

LOG = logging.getLogger("pytest_amp.telemetry")


class Sink(NamedTuple):
    """Somewhere to log to.

    Attributes:
        name: what to call it in a message.
        owner: the object that it is, by which it is known again.
        log: logs figures at a step.
    """

    name: str
    owner: object
    log: Callable[[dict[str, float], int], object]


class Telemetry:
    """What AmpTelemetry is in each framework: `Meter`'s figures, sent to loggers now and then."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """Return an instance that is also one of the framework's callbacks."""
        return object.__new__(_with_bases(cls, cls._bases()))

    def __init__(self, every_n_steps: int | None = None) -> None:
        number = isinstance(every_n_steps, int) and not isinstance(every_n_steps, bool)
        if every_n_steps is not None and not (number and every_n_steps >= 0):
            raise AmpError(
                f"AmpTelemetry(every_n_steps={every_n_steps!r}): give a number of steps, 0 to log "
                "at the ends of epochs alone, or None to log when the trainer does"
            )
        self.every_n_steps = every_n_steps
        self.broken = False
        self._meter: Meter | None = None
        self._skipped = 0
        self._told_at: int | None = None
        self._left_out: list[object] = []

    def __reduce__(self) -> Any:
        # The class that __new__ makes has no name by which it could be imported.
        return _unpickled, (getattr(self, "_without_bases", type(self)), self.__dict__)

    @classmethod
    def _bases(cls) -> tuple[type, ...]:
        """Return the classes that the framework expects its callbacks to be of."""
        raise NotImplementedError

    @property
    def skipped_steps(self) -> int:
        """How many steps were skipped so far; this synchronizes."""
        return self._skipped if self._meter is None else self._meter.skipped

    def _begin(self, meter: Meter, scaler: Any) -> None:
        if self._meter is not None:
            self._meter.close()
        self._meter, self._told_at = meter, None
        meter.begin(scaler)

    def _end(self) -> None:
        if self._meter is not None:
            self._meter.close()
            self._skipped, self._meter = self._meter.skipped, None

    def _tell(self, sinks: Iterable[Sink], step: int) -> None:
        """Log the figures, unless nothing has happened since they were logged."""
        heard = [sink for sink in sinks if not any(sink.owner is out for out in self._left_out)]
        if self._meter is None or not heard or step == self._told_at:
            return
        self._told_at = step
        figures = self._meter.figures()
        for sink in heard:
            try:
                sink.log(dict(figures), step)
            except Exception as error:  # noqa: BLE001
                self._left_out.append(sink.owner)
                told = f"{type(error).__name__}: {error}"
                LOG.warning("AmpTelemetry logs no longer to %s, which raised %s", sink.name, told)


def harmless(hook: Callable[..., None]) -> Callable[..., None]:
    """Make a hook of a callback end the telemetry, and not the training, when it raises."""

    @functools.wraps(hook)
    def guarded(self: Telemetry, *arguments: Any, **named: Any) -> None:
        if self.broken:
            return
        try:
            hook(self, *arguments, **named)
        except Exception as error:  # noqa: BLE001
            self.broken = True
            told = f"{type(error).__name__} in {hook.__name__}: {error}"
            LOG.warning("AmpTelemetry ends here, and the training goes on: %s", told)

    return guarded


def active_runs(axis: str) -> list[Sink]:
    """Return the runs of Weights & Biases and of MLflow that this process has begun.

    Args:
        axis: the metric of Weights & Biases by which its charts are drawn.
    """
    found = []
    wandb, mlflow = sys.modules.get("wandb"), sys.modules.get("mlflow")
    if wandb is not None and (run := getattr(wandb, "run", None)) is not None:
        found.append(Sink("wandb", run, lambda figures, step: run.log({**figures, axis: step})))
    if mlflow is not None and (active := mlflow.active_run()) is not None:
        found.append(
            Sink("mlflow", active, lambda figures, step: mlflow.log_metrics(figures, step=step))
        )
    return found


def _with_bases(cls: Any, bases: tuple[type, ...]) -> Any:
    """Return a class that is also of a framework's bases, which are known only when it is used."""
    if all(issubclass(cls, base) for base in bases):
        return cls
    if (cls, bases) not in _MADE:
        about = {"__module__": cls.__module__, "_without_bases": cls}
        _MADE[cls, bases] = type(cls.__name__, (cls, *bases), about)
    return _MADE[cls, bases]


_MADE: dict[Any, type] = {}


def _unpickled(cls: Any, state: dict[str, Any]) -> Any:
    made = cls.__new__(cls)
    made.__dict__.update(state)
    return made
