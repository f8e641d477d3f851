"""Say what other work took from the timed blocks, and whether it could have made a verdict."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

from pytest_amp import units
from pytest_amp.observations import Disturbance, GpuState, Timing
from pytest_amp.results.contention import Contention, Taken
from pytest_amp.results.report import AmpReport

ARMS = ("fp32", "amp")
# Less than this is what any machine does on the side: a share of the time, and a part of a core.
LITTLE = 0.02
PART_OF_A_CORE = 0.3
# Clocks that are held back in a smaller share of the blocks are no cause.
OFTEN = 0.1


def of(timing: Timing | None) -> Contention | None:
    """Return what was taken from each arm's blocks; None if nobody looked."""
    if timing is None or timing.machine is None:
        return None
    machine = timing.machine
    arms = zip(ARMS, machine.blocks, machine.gpu, strict=True)
    return Contention(
        machine.device_type,
        machine.cores,
        machine.processors,
        machine.threads,
        {name: _taken(blocks, gpu) for name, blocks, gpu in arms if blocks or gpu},
        machine.gpu_processes,
    )


def _taken(blocks: Sequence[Disturbance], gpu: Sequence[GpuState]) -> Taken:
    wall_s = sum(block.wall_s for block in blocks)

    def of_wall(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return max(0.0, sum(known) / wall_s) if known and wall_s else None

    preemptions = [each.preemptions for each in blocks if each.preemptions is not None]
    periods = sum(each.periods or 0 for each in blocks)
    causes = Counter(cause for state in gpu for cause in state.held_back)
    return Taken(
        blocks=max(len(blocks), len(gpu)),
        preempted=sum(count > 0 for count in preemptions) if preemptions else None,
        waited=of_wall([each.waited_s for each in blocks]),
        others=of_wall([each.others_s for each in blocks]),
        stolen=of_wall([each.stolen_s for each in blocks]),
        pressure=of_wall([each.pressure_s for each in blocks]),
        throttled=sum(each.throttled or 0 for each in blocks) / periods if periods else None,
        clock_mhz=statistics.median(state.clock_mhz for state in gpu) if gpu else None,
        held_back=dict(causes.most_common()),
    )


def undisturbed(timing: Timing) -> tuple[float, ...]:
    """Return the pairs' ratios without the time in which a thread had no processor.

    A step is as late as its last thread, so what the thread waited that waited longest is taken
    off. On an accelerator the host runs ahead, so that its waits need not delay a step.
    """
    fp32, amp = timing.machine.blocks if timing.machine else ((), ())
    if not fp32 or (timing.machine and timing.machine.device_type != "cpu"):
        return timing.ratios
    return tuple(
        ratio * with_processors(before) / with_processors(after)
        for ratio, before, after in zip(timing.ratios, fp32, amp, strict=True)
    )


def agrees(timing: Timing, threshold: float, pairs: int | None = None) -> bool:
    """Return whether the speedup is on the same side of a threshold without what others took.

    Args:
        timing: the pairs.
        threshold: of the speedup.
        pairs: how many of the pairs to ask; by default all.
    """
    seen, without = timing.ratios[:pairs], undisturbed(timing)[:pairs]
    return (statistics.median(seen) >= threshold) == (statistics.median(without) >= threshold)


def has_company(found: Contention | None) -> bool:
    """Return whether other processes kept a good part of a processor busy, beside a CPU's test."""
    if found is None or found.device_type != "cpu":
        return False
    return found.most("others") > PART_OF_A_CORE


def could_have_made(timing: Timing, threshold: float) -> str | None:
    """Return that what others took could have put the speedup on its side; None if it couldn't."""
    found = of(timing)
    return None if found is None or agrees(timing, threshold) else _which_waited(found)


def could_have_lowered(now: AmpReport, before: AmpReport, least: float) -> str | None:
    """Return that waits could have made a speedup fall below a share of what it was.

    Args:
        now: the report of this run.
        before: the stored one.
        least: the share of the former speedup that is not below what is allowed; 0.9 is 90%.
    """
    if now.speedup is None or before.speedup is None:
        return None
    ours, theirs = _share_left(now.contention), _share_left(before.contention)
    if now.speedup.value * ours < least * before.speedup.value * theirs:
        return None
    if now.contention and abs(ours - 1) >= abs(theirs - 1):
        return _which_waited(now.contention)
    return f"in the baseline, {_which_waited(before.contention)}" if before.contention else None


def _share_left(found: Contention | None) -> float:
    """Return by how much a speedup changes if the time that threads waited is taken off."""
    if found is None or found.device_type != "cpu" or set(found.arms) != {*ARMS}:
        return 1.0
    fp32, amp = (max(0.01, 1 - (found.arms[name].waited or 0.0)) for name in ARMS)
    return fp32 / amp


def _which_waited(found: Contention) -> str:
    waited = {name: each.waited or 0.0 for name, each in found.arms.items()}
    more, less = sorted(waited, key=lambda name: -waited[name])
    said = (
        f"the {more} arm's threads had no processor for {units.share(waited[more])} of its time "
        f"({less}'s for {units.share(waited[less])}), which could have made that difference"
    )
    return f"{said}; {cause(found) or 'stop other work on the machine'}"


def with_processors(block: Disturbance) -> float:
    """Return the share of a block in which all threads could have run; at least a hundredth."""
    if not block.waited_s or not block.wall_s:
        return 1.0
    return max(0.01, 1 - block.waited_s / block.wall_s)


def cause(found: Contention | None) -> str | None:
    """Return what took processors from the test, and what to do about it; None if little did.

    The text is such as ``other processes keep 1.0 of 2 cores busy, and 2 threads wait for each
    other: set OMP_NUM_THREADS=1``.
    """
    if found is None:
        return None
    return on_processors(found) if found.device_type == "cpu" else _of_gpu(found)


def on_processors(found: Contention | None) -> str | None:
    """Return what took processors from a test that ran on them; None if little did."""
    if found is None or not found.cores or not found.threads or found.device_type != "cpu":
        return None
    if found.most("throttled") > LITTLE and found.threads > found.cores:
        return (
            f"the container may use {found.cores:g} cores, and was stopped in "
            f"{units.share(found.most('throttled'))} of its quota's periods, since "
            f"{found.threads} threads want more: set OMP_NUM_THREADS={max(1, int(found.cores))}"
        )
    if found.most("stolen") > PART_OF_A_CORE:
        shared = found.processors or found.cores
        return (
            f"the hypervisor gives {found.most('stolen'):.1f} of {shared:g} cores to other "
            "machines: measure on a machine that shares none"
        )
    return crowded(found.cores, found.threads, found.most("others"), found.processors)


def crowded(cores: float, threads: int, others: float, processors: int | None = None) -> str | None:
    """Return that threads want more processors than there are, and the remedy; None if not so.

    Args:
        cores: the processors that this process may use.
        threads: the threads in which torch computes an operator.
        others: how many processors other processes keep busy.
        processors: those that it may run on, if a quota allows fewer.
    """
    others = others if others > PART_OF_A_CORE else 0.0
    shared = processors or cores
    free = _free(cores, others, processors)
    if threads <= free + PART_OF_A_CORE:
        return None
    fewer = fewer_threads(cores, threads, others, processors)
    if not others or free == cores:  # there is room for as many as it may use
        what = f"{threads} threads share {cores:g} cores and wait for each other"
        return f"{what}: set OMP_NUM_THREADS={fewer or 1}"
    what = f"other processes keep {others:.1f} of {shared:g} cores busy"
    if fewer is None:
        return f"{what}: stop them, or measure on another machine"
    return f"{what}, and {threads} threads wait for each other: set OMP_NUM_THREADS={fewer}"


def _free(cores: float, others: float, processors: int | None) -> float:
    """Return how many processors are left for this process."""
    return max(0.0, min(cores, (processors or cores) - others))


def fewer_threads(
    cores: float, threads: int, others: float, processors: int | None = None
) -> int | None:
    """Return how many threads find a processor each; None if all do, or fewer would not help."""
    free = _free(cores, others, processors)
    if threads <= free + PART_OF_A_CORE:
        return None
    fitting = max(1, int(free + PART_OF_A_CORE))
    return fitting if fitting < threads else None


def threads_to_try(timing: Timing) -> int | None:
    """Return in how many threads to time the arms instead; None if their number is no matter."""
    found = of(timing)
    if found is None or not found.cores or not found.threads or found.device_type != "cpu":
        return None
    return fewer_threads(found.cores, found.threads, found.most("others"), found.processors)


def _of_gpu(found: Contention) -> str | None:
    held = {
        cause: [each.held_back.get(cause, 0) for each in found.arms.values()]
        for taken in found.arms.values()
        for cause, blocks in taken.held_back.items()
        if blocks >= OFTEN * taken.blocks
    }
    if not held and found.gpu_processes:
        others = "another process has"
        if found.gpu_processes > 1:
            others = f"{found.gpu_processes} other processes have"
        return f"{others} the GPU open: give the test one of its own"
    if not held:
        return None
    first = max(held, key=lambda each: sum(held[each]))
    counts = ", ".join(
        f"{each.held_back.get(first, 0)} of {each.blocks} {name} blocks"
        for name, each in found.arms.items()
    )
    return (
        f"the GPU's clocks were held back by {first} ({counts}): cool it, give it power, or lock "
        "lower ones with nvidia-smi -lgc"
    )


def preempted(found: Contention | None) -> str | None:
    """Return a text such as ``a thread was preempted in 14 of 40 amp blocks, in none of fp32's``.

    None means that this is not known, or happened nowhere.
    """
    if found is None:
        return None
    counts = {
        name: (each.preempted, each.blocks)
        for name, each in found.arms.items()
        if each.preempted is not None
    }
    if not any(count for count, _ in counts.values()):
        return None
    (first, (most, blocks)), *others = sorted(counts.items(), key=lambda each: -(each[1][0] or 0))
    said = f"in {most} of {blocks} {first} blocks a thread was preempted"
    for name, (count, of) in others:
        said += f", in {f'{count} of {of}' if count else 'none'} of {name}'s"
    return said
