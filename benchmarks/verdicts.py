"""How often a verdict is wrong: identical steps and slower ones, in fresh processes, beside peers.

The question is always the same: is the second step slower than the first by more than 5%? In each
process a step is timed against itself, and against itself with 3, 5, 10 or 20% of real work added
to it; the step goes round through six small ones. A process asks about 0% and 10%, and every other
one about 3, 5 or 20% too, in random order. The gate is `timing.run` with
`min_speedup = 1 / 1.05`, as a test has it: at most two seconds (`--seconds`), and no answer is an
answer.

The peers get the same two steps in the same process, and as many seconds as the gate took: the
first step for half of them, then the second, built as for the gate.

- *torch.utils.benchmark*: the medians of `Timer.blocked_autorange`.
- *pytest-benchmark*: `--benchmark-compare-fail=median:5%` and `mean:5%` on the times of single
  steps, which the Timer took: so pytest-benchmark times steps of more than a few microseconds.
- *one run each*: ten steps of each, once, behind the same warm-up: what one writes by hand.
- *Mann-Whitney*: slower at p < .05, as it is usually asked, and slower by more than 5% at p < .05.

pytest-benchmark compares with a saved run. So its rows take the process before as the saved run,
which is how it is used, and the mean is there within a process too, as the median is.

Wrong is "slower" for 0 or 3%, and "not slower" for 10 or 20%. 5% lies on the threshold, where
either is right. Wanted of the gate: at most 1% wrong for 0%, and 10% found in at least 99% where
pairs spread by at most 3% (interquartile); a fifth of the best peer's wrong verdicts.

    python verdicts.py --processes 300 --out quiet.jsonl
    python verdicts.py --processes 300 --beside --out beside.jsonl
    python verdicts.py --table quiet.jsonl beside.jsonl

`--beside` starts two neighbours, each of which writes memory for half a second, then sleeps for
half a second, on average. More processes are added to what a file has. The table needs scipy.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

SLOWER_BY = 0.05
THRESHOLD = 1 / (1 + SLOWER_BY)
MOST_S = 2.0
ERROR_RATE = 0.01
NAMES = ("layers", "tiny layers", "convolutions", "attention", "GRU", "tables")
ALWAYS, SOMETIMES = (0.0, 0.1), (0.03, 0.05, 0.2)
RUN_STEPS = 10
WANTED_SPREAD = 0.03


def models():
    """Return six small models and their data by name: layers, convolutions, recurrence, tables."""
    import torch
    from forecast import Attention, Gru, classes, dense
    from torch import nn

    class Tables(nn.Module):
        """A step of it waits for memory: AdamW goes through all of the tables."""

        def __init__(self):
            super().__init__()
            self.table, self.layers = nn.EmbeddingBag(20_000, 32), dense(32, 64, 10)

        def forward(self, ids):
            return self.layers(self.table(ids))

    def convolutions():
        layers = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
        layers += [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)]
        return nn.Sequential(*layers)

    return {
        "layers": (lambda: dense(256, 512, 256, 10), classes(128, 256)),
        "tiny layers": (lambda: dense(32, 64, 10), classes(32, 32)),
        "convolutions": (convolutions, classes(16, 1, 8, 8)),
        "attention": (Attention, classes(2, 64, 128)),
        "GRU": (Gru, lambda: [torch.randint(128, (4, 16)) for _ in range(2)]),
        "tables": (Tables, lambda: (torch.randint(20_000, (64, 8)), torch.randint(10, (64,)))),
    }


def measure(name, number, most_s):
    """Return what one process sees of each planted size: the gate's answer, the peers' times."""
    import torch
    from forecast import setup_of

    from pytest_amp.experiment.job import Job
    from pytest_amp.experiment.run import laboratory
    from pytest_amp.judge import speed
    from pytest_amp.lab.machine.device import choose
    from pytest_amp.lab.phases import timing
    from pytest_amp.lab.phases.planted import slower_by
    from pytest_amp.progress import Progress
    from pytest_amp.settings.resolved import resolve

    torch.set_num_threads(1)
    settings = resolve([("cli", {"seed": number})])
    job = Job(name, setup_of(*models()[name]), choose("cpu"), settings)
    with laboratory(job, Progress()) as bench:

        def timed(work_s, is_done, order):
            change = slower_by(work_s) if work_s else lambda setup: setup
            sides = (timing.Side("amp"), timing.Side("amp", change))
            plan = timing.Plan(settings.warmup, is_done, order=order)
            return timing.run(bench, plan, sides), sides

        def nine(seen):
            return "enough" if len(seen.ratios) >= 9 else None

        def decided(seen):
            if seen.elapsed_s >= most_s:
                return "budget"
            return "decided" if speed.decision(seen, THRESHOLD, ERROR_RATE) else None

        # How much work makes a step of this process twice as long: beside a step, work takes
        # longer than alone.
        step_s = statistics.median(timed(0, nine, 0)[0].fp32_step_s)
        slower = 1 / statistics.median(timed(0.2 * step_s, nine, 0)[0].ratios) - 1
        second_s = step_s * min(2.0, max(0.5, 0.2 / slower)) if slower > 0 else step_s

        turn, rest = divmod(number // len(NAMES), 2)
        sizes = [*ALWAYS, *SOMETIMES[turn % len(SOMETIMES) :][: 1 - rest]]
        random.Random(number).shuffle(sizes)
        trials = []
        for size in sizes:
            seen, sides = timed(size * second_s, decided, number)
            answer, pairs = speed.first_decision(seen, THRESHOLD, ERROR_RATE)
            trials.append(
                {
                    "size": size,
                    "ratios": [round(ratio, 5) for ratio in seen.ratios],
                    "answer": answer or "open",
                    "pairs": pairs,
                    "seconds": seen.elapsed_s,
                    "sides": [_peers(bench, side, settings.warmup, seen.elapsed_s / 2)
                              for side in sides],
                }
            )  # fmt: skip
    return {"step": name, "number": number, "trials": trials}


def _peers(bench, side, warmup, seconds):
    """Time a run of ten steps, then single steps for so long."""
    from torch.utils.benchmark import Timer

    with side.built(bench) as resident, resident.active():
        for _ in range(warmup):
            resident.step()
        began = time.perf_counter()
        for _ in range(RUN_STEPS):
            resident.step()
        run_s = (time.perf_counter() - began) / RUN_STEPS
        timer = Timer("step()", globals={"step": resident.step})
        times = timer.blocked_autorange(min_run_time=seconds).times
    return {"run": run_s, "steps": [round(each, 7) for each in times]}


# What a peer says of two sides: True if the second is slower.


def by_median(one, other):
    return statistics.median(other["steps"]) > (1 + SLOWER_BY) * statistics.median(one["steps"])


def by_mean(one, other):
    return statistics.fmean(other["steps"]) > (1 + SLOWER_BY) * statistics.fmean(one["steps"])


def by_one_run(one, other):
    return other["run"] > (1 + SLOWER_BY) * one["run"]


def by_ranks(one, other, factor=1.0):
    from scipy.stats import mannwhitneyu

    slower = [each / factor for each in other["steps"]]
    return mannwhitneyu(slower, one["steps"], alternative="greater").pvalue < 0.05


def by_ranks_beyond(one, other):
    return by_ranks(one, other, 1 + SLOWER_BY)


# By its name: what it says, and whether the first side is the process before's.
PEERS = {
    "pytest-benchmark median:5%, saved run": (by_median, True),
    "pytest-benchmark mean:5%, saved run": (by_mean, True),
    "pytest-benchmark mean:5%, same process": (by_mean, False),
    "torch.utils.benchmark, medians": (by_median, False),
    "one run each": (by_one_run, False),
    "Mann-Whitney": (by_ranks, False),
    "Mann-Whitney, beyond 5%": (by_ranks_beyond, False),
}


def neighbour(seed):
    """Write memory for half a second, then sleep for half a second, on average."""
    import numpy as np

    rng = random.Random(seed)
    values = np.ones(4_000_000)
    while True:
        ends = time.perf_counter() + rng.expovariate(2)
        while time.perf_counter() < ends:
            values *= 1.0
        time.sleep(rng.expovariate(2))


def sample(options):
    """Run fresh processes, and add each one's line to a file."""
    done = len(options.out.read_text().splitlines()) if options.out.exists() else 0
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    here = [sys.executable, __file__]
    around = [
        subprocess.Popen([*here, "--neighbour", str(seed)], env=env)
        for seed in range(2 * options.beside)
    ]
    try:
        for number in range(done, done + options.processes):
            name = NAMES[number % len(NAMES)]
            command = [*here, f"--seconds={options.seconds}", "--one", name, str(number)]
            made = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
            if made.returncode:
                sys.exit(made.stderr)
            with options.out.open("a") as file:
                file.write(made.stdout.splitlines()[-1] + "\n")
            trials = json.loads(made.stdout.splitlines()[-1])["trials"]
            print(
                number, name, *(f"{each['size']}:{each['answer']}" for each in trials), flush=True
            )
    finally:
        for process in around:
            process.kill()


def table(paths):
    """Print what each said, by condition and size."""
    for path in paths:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        print(f"\n{path.stem}: {len(lines)} processes")
        _gate(lines)
        said = _answers(lines)
        sizes = sorted({size for _, size in said})
        heads = (f"{size:.0%} of {said['pytest-amp', size].total()}" for size in sizes)
        print(f"{'said slower (and open):':<40}{''.join(f'{head:>14}' for head in heads)}  wrong")
        for who in ("pytest-amp", *PEERS):
            wrong = total = 0
            cells = []
            for size in sizes:
                got = said[who, size]
                if not got:  # the first process of a step has no saved run
                    cells.append("-")
                    continue
                is_open = f" ({got['open'] / got.total():.0%})" if who == "pytest-amp" else ""
                cells.append(f"{got['slower'] / got.total():.1%}{is_open}")
                if size != SLOWER_BY:
                    wrong += got["slower" if size < SLOWER_BY else "same"]
                    total += got.total()
            row = "".join(f"{cell:>14}" for cell in cells)
            share = f" ({wrong / total:.1%})" if total else ""
            print(f"{who:<40}{row}  {wrong} of {total}{share}")


def _answers(lines):
    """Return how often each said what of each size."""
    saved, said = {}, defaultdict(Counter)
    for line in lines:
        for trial in line["trials"]:
            answer = {"pass": "same", "fail": "slower"}.get(trial["answer"], "open")
            said["pytest-amp", trial["size"]][answer] += 1
            for peer, (slower, is_saved) in PEERS.items():
                first = saved.get(line["step"]) if is_saved else trial["sides"][0]
                if first is not None:
                    answer = "slower" if slower(first, trial["sides"][1]) else "same"
                    said[peer, trial["size"]][answer] += 1
        saved[line["step"]] = line["trials"][0]["sides"][0]
    return said


def _gate(lines):
    """Print what the gate measured: how pairs spread, how long it took, what was planted."""
    by_step, by_size, steady = defaultdict(list), defaultdict(list), Counter()
    for line in lines:
        for trial in line["trials"]:
            low, middle, high = statistics.quantiles(trial["ratios"], n=4)
            by_step[line["step"]].append((high - low) / middle)
            by_size[trial["size"]].append(trial)
            if trial["size"] == ALWAYS[1] and (high - low) / middle <= WANTED_SPREAD:
                steady[trial["answer"]] += 1
    spreads = (f"{name} {statistics.median(each):.1%}" for name, each in by_step.items())
    print(f"pairs spread by (interquartile): {', '.join(spreads)}")
    for size, trials in sorted(by_size.items()):
        middle = statistics.median(ratio for trial in trials for ratio in trial["ratios"])
        pairs = statistics.median(trial["pairs"] for trial in trials)
        seconds = statistics.median(trial["seconds"] for trial in trials)
        print(f"{size:.0%}: measured {1 / middle - 1:.1%}, {pairs:.0f} pairs, {seconds:.2f} s")
    print(f"{ALWAYS[1]:.0%} where they spread by at most {WANTED_SPREAD:.0%}: {dict(steady)}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=12)
    parser.add_argument("--beside", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("verdicts.jsonl"))
    parser.add_argument("--table", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, default=MOST_S, help="that the gate may take")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--neighbour", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]), options.seconds)))
    elif options.neighbour is not None:
        neighbour(options.neighbour)
    elif options.table:
        table(options.table)
    else:
        sample(options)


if __name__ == "__main__":
    main()
