"""Parity runs with some modules kept in float32: what `bisect` tries its sets by."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

from pytest_amp.errors import none_of_ours
from pytest_amp.experiment.job import Job
from pytest_amp.experiment.run import laboratory, limits_of
from pytest_amp.judge import gates
from pytest_amp.lab.phases import counterfactuals
from pytest_amp.lab.phases import parity as parity_run
from pytest_amp.lab.phases.inspection import Computing, computing_modules
from pytest_amp.lab.scaling.step_watch import Replay
from pytest_amp.lab.watch.tensors import dtype_name
from pytest_amp.observations import Floor, Observations, ParityRun
from pytest_amp.progress import Progress
from pytest_amp.results.values import Gate

__tracebackhide__ = none_of_ours


class Trials:
    """Parity runs of one job's amp arm with modules kept in float32, judged like the job itself."""

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
        return self._bench.device.type

    @property
    def dtype(self) -> str:
        return dtype_name(self._bench.dtype)

    @property
    def steps(self) -> int:
        """How many steps of the user's were run."""
        return self._bench.steps

    def modules(self) -> list[Computing]:
        """The amp arm's modules that compute something.

        Inner ones before those around them, and cheap ones first, since keeping them costs less.
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
        """The parity gate with these modules kept in float32."""
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
