"""Search for the lines and modules that have to stay in float32, by parity runs that keep some."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_amp import units
from pytest_amp.errors import AmpError, unless_our_bug
from pytest_amp.experiment.candidates import Candidate, Line, Module, found_in
from pytest_amp.experiment.job import Job
from pytest_amp.experiment.plan import limits_of
from pytest_amp.experiment.run import laboratory
from pytest_amp.judge import gates
from pytest_amp.lab.phases import counterfactuals
from pytest_amp.lab.phases import parity as parity_run
from pytest_amp.lab.scaling.step_watch import Replay
from pytest_amp.lab.watch.tensors import dtype_name
from pytest_amp.observations import Floor, Observations, ParityRun
from pytest_amp.progress import Progress
from pytest_amp.recipes import Recipe
from pytest_amp.results.values import Gate

if TYPE_CHECKING:
    from pytest_amp.experiment.job import Job
    from pytest_amp.experiment.minimal_set import Bisection
    from pytest_amp.progress import Progress

__tracebackhide__ = unless_our_bug


class Trials:
    """Parity runs of a job's amp arm with some parts in float32, judged by the job's limits."""

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
    def recipe(self) -> Recipe:
        """The recipe of the amp arm."""
        return self._bench.recipes.amp

    @property
    def steps(self) -> int:
        """How many of the user's steps were run."""
        return self._bench.steps

    def candidates(self) -> dict[str, Candidate]:
        """Return by name what may be kept in float32, in the order of preference."""
        return found_in(self._bench)

    def loss_gate(self, kept: Collection[Candidate]) -> Gate:
        """Run the amp arm with these lines and modules in float32, and return the parity gate."""
        bench, steps = self._bench, self._job.settings.steps
        lines = {each.location for each in kept if isinstance(each, Line)}
        modules = {each.path for each in kept if isinstance(each, Module)}
        amp, replay = counterfactuals.in_float32(bench, steps, modules, lines)
        if replay not in self._baselines:
            self._baselines[replay] = parity_run.run(bench, "fp32", steps, replay)[0]
        if self._floor is None:
            self._floor = parity_run.floor(bench, steps, replay, other_stream=False)
        seen = Observations(
            recipes=self._bench.recipes,
            device=bench.device.name(),
            dtype=self.dtype,
            native_support=True,
            fp32=self._baselines[replay],
            amp=amp,
            floor=self._floor,
        )
        return next(gate for gate in gates.judge(seen, self.limits) if gate.name == "loss_diff")


Say = Callable[[str], object]


@dataclass
class Search:
    """The course of one bisection, which `bisect` fills in.

    Attributes:
        device_type: the type of the device.
        dtype: the dtype of the amp arm.
        threshold: the loss difference that is allowed.
        candidates: the lines and modules by name, in the order in which they are tried.
        differences: the loss difference with each set of them in float32; None if the loss was not
            finite.
        steps: how many of the user's steps were run.
        seconds: how long it took.
        found: the result; None if the bisection ended early.
    """

    device_type: str = "cpu"
    dtype: str = ""
    threshold: float = 0.0
    candidates: dict[str, Candidate] = field(default_factory=dict)
    differences: dict[frozenset[str], float | None] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    found: Bisection | None = None


def bisect(job: Job, progress: Progress, search: Search, say: Say) -> None:
    """Look for the smallest set of lines and modules that lets the test pass its parity gate.

    Args:
        job: the test.
        progress: is told what runs.
        search: is filled in as the search goes on.
        say: is called with a line for each trial.

    Raises:
        AmpError: the test has no parity gate to pass, or an arm without autocast.
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
        if trials.recipe.autocast_dtype is None:
            other = "fp16" if trials.recipe.dtype == "float16" else "bf16"
            raise AmpError(
                f"bisect keeps parts of a step out of autocast, and {trials.recipe} has none: "
                f"compare with autocast, as in --amp-candidate={other}"
            )
        search.device_type, search.dtype = trials.device_type, trials.dtype
        search.threshold = wanted
        search.candidates = trials.candidates()
        lines = sum(isinstance(each, Line) for each in search.candidates.values())
        modules = len(search.candidates) - lines
        say(f"bisecting {job.nodeid} on {trials.device_type} in {trials.dtype}")
        say(
            f"  {units.plural(lines, 'line')} and {units.plural(modules, 'module')}, "
            f"max_loss_diff {units.share(wanted)}"
        )

        def passes(kept: frozenset[str]) -> bool:
            gate = trials.loss_gate([search.candidates[name] for name in kept])
            search.differences[kept] = gate.value
            found = "not finite" if gate.value is None else units.share(gate.value)
            held = units.plural(len(kept), "place") if kept else "nothing"
            number = len(search.differences)
            say(f"  trial {number:>2}  {held + ' in float32':<24} {found:>10}  {gate.verdict}")
            return gate.verdict == "pass"

        search.found = minimal_set.smallest([*search.candidates], passes)
        search.steps = trials.steps
    search.seconds = time.perf_counter() - began
