"""What other work took from the blocks that were timed, summed up by arm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pytest_amp import units


@dataclass(frozen=True)
class Taken:
    """What was taken from one arm's timed blocks; None where the system does not count it.

    Shares are of the blocks' time; 0.1 is 10%.

    Attributes:
        blocks (int): how many blocks there were.
        preempted (int | None): in how many of them a thread had to leave its processor.
        waited (float | None): the share in which the thread that waited longest had no processor.
        others (float | None): how many processors other processes kept busy, on average.
        stolen (float | None): how many processors the hypervisor gave to other machines.
        pressure (float | None): the share in which some thread of some process waited.
        throttled (float | None): the share of a quota's periods in which it was used up.
        clock_mhz (float | None): the median of the GPU's clocks.
        held_back (Mapping[str, int]): in how many blocks its clocks were held back, by the cause.
    """

    blocks: int
    preempted: int | None = None
    waited: float | None = None
    others: float | None = None
    stolen: float | None = None
    pressure: float | None = None
    throttled: float | None = None
    clock_mhz: float | None = None
    held_back: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Contention:
    """What a test had of the machine, and what others took of it while the test was timed.

    Attributes:
        device_type (str): where the arms ran.
        cores (float | None): the processors that the test could use, a container's quota included.
        processors (int | None): those that it could run on, which others share, without a quota.
        threads (int | None): the threads in which torch computed its operators.
        arms (Mapping[str, Taken]): what was taken from each arm, by its name: "fp32" and "amp".
        gpu_processes (int | None): how many other processes had the GPU open.
    """

    device_type: str = "cpu"
    cores: float | None = None
    processors: int | None = None
    threads: int | None = None
    arms: Mapping[str, Taken] = field(default_factory=dict)
    gpu_processes: int | None = None

    def most(self, what: str) -> float:
        """Return the larger of both arms' figures, 0 if there is none."""
        return max((getattr(each, what) or 0.0 for each in self.arms.values()), default=0.0)

    def said(self, names: Mapping[str, str]) -> str:
        """Return it on one line.

        Args:
            names: what to call each arm.
        """
        return ", ".join(self._facts(names)) or "the system does not count what others take"

    def _facts(self, names: Mapping[str, str]) -> Iterator[str]:
        if any(each.others is not None for each in self.arms.values()) and self.cores:
            shared = self.processors or self.cores
            yield f"other processes kept {self.most('others'):.1f} of {shared:g} cores busy"
        if self.cores and self.cores != self.processors:
            yield f"it may use {self.cores:g} cores"
        if self.threads:
            yield units.plural(self.threads, "thread")
        blocks = [
            f"{each.preempted} of {each.blocks} {names.get(name, name)} blocks"
            for name, each in self.arms.items()
            if each.preempted is not None
        ]
        if blocks:
            yield f"a thread was preempted in {units.listed(blocks)}"
        if self.most("stolen") >= SHOWN:
            yield f"the hypervisor took {self.most('stolen'):.1f} cores"
        if self.most("throttled") >= SHOWN:
            yield f"a quota stopped it in {units.share(self.most('throttled'))} of its periods"
        for name, each in self.arms.items():
            if each.clock_mhz is not None:
                yield f"{names.get(name, name)} at {each.clock_mhz:.0f} MHz"
        if self.gpu_processes:
            others = "another process" if self.gpu_processes == 1 else "other processes"
            yield f"{others} on the GPU"


# Smaller shares, and smaller parts of a core, are not told.
SHOWN = 0.02
