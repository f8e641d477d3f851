"""What the telemetry of each framework has in common: when, where to, and that it does no harm.

Telemetry runs in real trainings, for days: whatever goes wrong in it is reported once, and the
training goes on.
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

ATTEMPTS = 3
"""After so many failures in a row, a logger is left alone for the rest of the training."""


class Sink(NamedTuple):
    """Somewhere to log to.

    Attributes:
        name: what to call it in a message.
        owner: the object that it is, by which it is recognised.
        log: logs figures at a step.
    """

    name: str
    owner: object
    log: Callable[[dict[str, float], int], object]


class Telemetry:
    """What AmpTelemetry is in each framework: `Meter`'s figures, sent to loggers now and then."""

    # Of the class as well, for a subclass whose __init__ does not call ours.
    every_n_steps: int | None = None
    broken = False
    _meter: Meter | None = None
    _skipped_by = 0
    _resumed_with = 0
    _told_at = 0
    _failures: dict[int, int]

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

    def __reduce__(self) -> Any:
        # The class that __new__ makes has no name by which it could be imported.
        return _unpickled, (vars(type(self)).get("_made_of", type(self)), self.__dict__)

    @classmethod
    def _bases(cls) -> tuple[type, ...]:
        """Return the classes that the framework expects its callbacks to be of."""
        raise NotImplementedError

    @property
    def skipped_steps(self) -> int:
        """How many steps of the training were skipped so far; this synchronizes."""
        return self._skipped_by if self._meter is None else self._meter.skipped

    def _begin(self, meter: Meter, scaler: Any) -> None:
        if self._meter is not None:
            self._meter.close()
        self._meter, self._told_at, self._failures = meter, 0, {}
        self._resumed_with = 0
        meter.begin(scaler)

    def _end(self) -> None:
        meter, self._meter = self._meter, None
        if meter is not None:
            meter.close()
            self._skipped_by = meter.skipped

    def _tell(self, sinks: Iterable[Sink], step: int) -> None:
        """Log the figures, unless no step was taken since they were logged."""
        if self._meter is None or self._meter.steps == self._told_at:
            return
        heard = [sink for sink in sinks if self._failures.get(id(sink.owner), 0) < ATTEMPTS]
        if not heard:
            return
        self._told_at = self._meter.steps
        figures = self._meter.figures()
        for sink in heard:
            known = id(sink.owner)
            try:
                sink.log(dict(figures), step)
            except Exception as error:  # noqa: BLE001
                if known not in self._failures:
                    told = f"{type(error).__name__}: {error}"
                    LOG.warning("AmpTelemetry could not log to %s: %s", sink.name, told)
                self._failures[known] = self._failures.get(known, 0) + 1
            else:
                if known in self._failures:
                    self._failures[known] = 0


def harmless(hook: Callable[..., None]) -> Callable[..., None]:
    """Make a hook of a callback end the telemetry, and not the training, when it raises.

    The next training begins with all hopes again.
    """
    begins = hook.__name__ in ("on_train_start", "on_train_begin")

    @functools.wraps(hook)
    def guarded(self: Telemetry, *arguments: Any, **named: Any) -> None:
        if begins:
            self.broken = False
        if self.broken:
            return
        try:
            hook(self, *arguments, **named)
        except Exception as error:  # noqa: BLE001
            self.broken = True
            told = f"{type(error).__name__} in {hook.__name__}: {error}"
            LOG.warning("AmpTelemetry ends here, and the training goes on: %s", told)
            if self._meter is not None:
                self._meter.close()

    return guarded


def active_runs(axis: str | None = None) -> list[Sink]:
    """Return the runs of Weights & Biases and of MLflow that this process has begun.

    Args:
        axis: the metric that the framework's own callback has made the x axis of Weights & Biases's
            charts. If there is none, the user logs to the run, and may number the rows: the figures
            become part of the next row then, since after a row more it would refuse the user's.
    """
    found = []
    wandb, mlflow = sys.modules.get("wandb"), sys.modules.get("mlflow")
    if wandb is not None and (run := getattr(wandb, "run", None)) is not None:

        def log(figures: dict[str, float], step: int) -> None:
            if axis is None:
                run.log(figures, commit=False)
            else:
                run.log({**figures, axis: step})

        found.append(Sink("wandb", run, log))
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
        about = {"__module__": cls.__module__, "__doc__": cls.__doc__, "_made_of": cls}
        _MADE[cls, bases] = type(cls.__name__, (cls, *bases), about)
    return _MADE[cls, bases]


_MADE: dict[Any, type] = {}


def _unpickled(cls: Any, state: dict[str, Any]) -> Any:
    made = cls.__new__(cls)
    made.__dict__.update(state)
    return made
