"""Search for the modules that have to stay in float32, by parity runs that keep some there."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_amp import units
from pytest_amp.errors import AmpError, unless_our_bug
from pytest_amp.experiment.job import Job
from pytest_amp.experiment.plan import limits_of
from pytest_amp.experiment.run import laboratory
from pytest_amp.judge import gates
from pytest_amp.lab.phases import counterfactuals
from pytest_amp.lab.phases import parity as parity_run
from pytest_amp.lab.phases.inspection import Computing, computing_modules
from pytest_amp.lab.scaling.step_watch import Replay
from pytest_amp.lab.watch.tensors import dtype_name
from pytest_amp.observations import Floor, Observations, ParityRun
from pytest_amp.progress import Progress
from pytest_amp.results.values import Gate

if TYPE_CHECKING:
    from pytest_amp.experiment.job import Job
    from pytest_amp.experiment.minimal_set import Bisection
    from pytest_amp.progress import Progress

__tracebackhide__ = unless_our_bug


class Trials:
    """Parity runs of a job's amp arm with some modules in float32, judged by the job's limits."""

    def __init__(self, job: Job, progress: Progress) -> None:
        self.limits = limits_of(job.settings, job.device.names())
        self._job = job
        self._stack = ExitStack()
        self._progress = progress
        self._baselines: dict[Replay | None, ParityRun] = {}
        self._floor: Floor | None = None

    def __enter__(self) -> Trials:
        self._bench = self._stack.enter_context(laboratory(self._job, self._progress))
        return self

    def __exit__(self, *details: Any) -> None:
        self._stack.__exit__(*details)

    @property
    def device_type(self) -> str:
        """The type of the device that is measured."""
        return self._bench.device.type

    @property
    def dtype(self) -> str:
        """The dtype of the amp arm."""
        return dtype_name(self._bench.dtype)

    @property
    def steps(self) -> int:
        """How many of the user's steps were run."""
        return self._bench.steps

    def modules(self) -> list[Computing]:
        """Return the modules of the amp arm that compute something.

        Inner modules come before the modules around them, and cheap ones before expensive ones,
        since keeping those in float32 costs less.
        """
        found = computing_modules(self._bench)
        paths = [each.call.path for each in found]
        root = paths[0] if len(paths) > 1 and "." not in paths[0] else None

        def place(each: Computing) -> tuple[bool, int, int]:
            path = each.call.path
            around = any(other.startswith(f"{path}.") for other in paths) or path == root
            return around, -path.count(".") * around, each.flops

        return sorted(found, key=place)

    def loss_gate(self, kept: Collection[str]) -> Gate:
        """Run the amp arm with these modules in float32, and return the parity gate."""
        bench, steps = self._bench, self._job.settings.steps
        amp, replay = counterfactuals.in_float32(bench, steps, kept)
        if replay not in self._baselines:
            self._baselines[replay] = parity_run.run(bench, "fp32", steps, replay)[0]
        if self._floor is None:
            self._floor = parity_run.floor(bench, steps, replay, other_stream=False)
        seen = Observations(
            device=bench.device.name(),
            dtype=self.dtype,
            native_support=True,
            fp32=self._baselines[replay],
            amp=amp,
            floor=self._floor,
        )
        return next(gate for gate in gates.judge(seen, self.limits) if gate.name == "loss_diff")


Say = Callable[[str], object]


@dataclass(frozen=True)
class Place:
    """A module of the user's model.

    Attributes:
        path: its path in the model.
        kind: the name of its class.
        written: the file and line of its `forward`; the class's module if there is no source.
        called: the user's line that calls it, if known.
        is_torchs: whether the class is torch's own.
        takes: the names of the arguments that a call has to give.
    """

    path: str
    kind: str
    written: str
    called: str | None
    is_torchs: bool
    takes: tuple[str, ...] = ("x",)


@dataclass
class Search:
    """The course of one bisection, which `bisect` fills in.

    Attributes:
        device_type: the type of the device.
        dtype: the dtype of the amp arm.
        threshold: the loss difference that is allowed.
        places: the modules by path, in the order in which they are tried.
        differences: the loss difference with each set of modules in float32; None if the loss was
            not finite.
        steps: how many of the user's steps were run.
        seconds: how long it took.
        found: the result; None if the bisection ended early.
    """

    device_type: str = "cpu"
    dtype: str = ""
    threshold: float = 0.0
    places: dict[str, Place] = field(default_factory=dict)
    differences: dict[frozenset[str], float | None] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    found: Bisection | None = None


def bisect(job: Job, progress: Progress, search: Search, say: Say) -> None:
    """Look for the smallest set of modules that lets the test pass its parity gate.

    Args:
        job: the test.
        progress: is told what runs.
        search: is filled in as the search goes on.
        say: is called with a line for each trial.

    Raises:
        AmpError: the test has no parity gate to pass.
    """
    from pytest_amp.experiment import minimal_set
    from pytest_amp.experiment.bisection import Trials

    began = time.perf_counter()
    with Trials(job, progress) as trials:
        wanted = trials.limits.max_loss_diff
        if wanted is None:
            raise AmpError(
                "max_loss_diff is off for this test, so there is no parity gate to pass: set it, "
                "for example with --amp-max-loss-diff=0.02"
            )
        search.device_type, search.dtype = trials.device_type, trials.dtype
        search.threshold = wanted
        search.places = {
            each.call.path: _place(each.call.module, each.call.path, each.location)
            for each in trials.modules()
        }
        names = list(search.places)
        say(f"bisecting {job.nodeid} on {trials.device_type} in {trials.dtype}")
        say(f"  {units.plural(len(names), 'module')}, max_loss_diff {units.share(wanted)}")

        def passes(kept: frozenset[str]) -> bool:
            gate = trials.loss_gate(kept)
            search.differences[kept] = gate.value
            found = "not finite" if gate.value is None else units.share(gate.value)
            held = "nothing" if not kept else units.plural(len(kept), "module")
            number = len(search.differences)
            say(f"  trial {number:>2}  {held + ' in float32':<24} {found:>10}  {gate.verdict}")
            return gate.verdict == "pass"

        search.found = minimal_set.smallest(names, passes)
        search.steps = trials.steps
    search.seconds = time.perf_counter() - began


def _place(module: Any, path: str, called: str | None) -> Place:
    kind = type(module)
    package = kind.__module__.partition(".")[0]
    try:
        file, line = inspect.getsourcefile(kind.forward), inspect.getsourcelines(kind.forward)[1]
    except (OSError, TypeError):
        file, line = None, 0
    written = f"{_short(file)}:{line}" if file else kind.__module__
    return Place(path, kind.__name__, written, called, package == "torch", _takes(kind.forward))


def _takes(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the arguments that a call has to give."""
    try:
        given = list(inspect.signature(forward).parameters.values())[1:]
    except (TypeError, ValueError):
        given = []
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [each.name for each in given if each.kind in plain and each.default is each.empty]
    return tuple(names) or ("x",)


def _short(file: str) -> str:
    with contextlib.suppress(ValueError):
        return Path(file).relative_to(Path.cwd()).as_posix()
    parts = Path(file).parts
    if "site-packages" in parts:
        return "/".join(parts[parts.index("site-packages") + 1 :])
    return file
