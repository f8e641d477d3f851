"""What other work on the machine took from a block of steps while it ran."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Disturbance:
    """What was counted between two reads of the system's counters; None where it has no such one.

    Attributes:
        wall_s: the seconds between the reads.
        preemptions: how often one of the process's threads had to leave a processor, although it
            had more to do: involuntary context switches.
        waited_s: the seconds in which the thread that waited longest was ready, and had no
            processor.
        others_s: the processor seconds that other processes took of the cores that this one may
            use. Worker processes of its own don't count as others. The system counts in ticks of
            some 10 ms, so that only the sum of many blocks means something; one may be negative.
        stolen_s: the processor seconds that the hypervisor gave to other machines.
        pressure_s: the seconds in which some thread on this machine, of whatever process, waited
            for a processor.
        throttled: in how many periods a container's quota of processor time was used up.
        periods: how many such periods there were.
    """

    wall_s: float
    preemptions: int | None = None
    waited_s: float | None = None
    others_s: float | None = None
    stolen_s: float | None = None
    pressure_s: float | None = None
    throttled: int | None = None
    periods: int | None = None


@dataclass(frozen=True)
class GpuState:
    """What NVML says of a GPU at the end of a block.

    Attributes:
        clock_mhz: the clock of its multiprocessors.
        held_back: what holds its clocks back, such as ``its temperature``.
    """

    clock_mhz: int
    held_back: tuple[str, ...] = ()


@dataclass(frozen=True)
class Machine:
    """What a test had of the machine while it was timed.

    Attributes:
        device_type: where the arms ran.
        cores: the processors that this process may use, a container's quota included; None if that
            is not known.
        processors: those that it may run on, which others share, without a quota.
        threads: the threads in which torch computes an operator.
        blocks: what was taken from the timed blocks of the fp32 and of the amp arm, in the order
            of the pairs; empty if nobody counted.
        gpu: the GPU's state at the end of each block, likewise; empty without NVML.
        gpu_processes: how many other processes had the GPU open; None if that is not known.
    """

    device_type: str = "cpu"
    cores: float | None = None
    processors: int | None = None
    threads: int | None = None
    blocks: tuple[tuple[Disturbance, ...], tuple[Disturbance, ...]] = ((), ())
    gpu: tuple[tuple[GpuState, ...], tuple[GpuState, ...]] = ((), ())
    gpu_processes: int | None = None
