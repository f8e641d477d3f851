"""How often the loss gate is wrong: ten small models, healthy and with faults, from twenty seeds.

Each fault is planted in the amp arm alone. What it does to the loss is known from all seeds: the
mean difference of the curves' last quarters, relative to fp32's. The gate judges single seeds, and
groups of five and of ten, with its defaults. Wanted: no healthy model fails, and no fault that
moves the loss by more than `max_loss_diff` passes.

Then the error of amp's losses against float64, as a multiple of fp32's own, by how many times the
dtype is coarser than float32. The gate fails a loss that rounding alone might explain only beyond
`results.anchor.BEYOND`, which has to lie above all healthy models.

    python parity.py --dtype bfloat16 --seeds 0-20 --out bfloat16.jsonl
    python parity.py --table bfloat16.jsonl
"""

import argparse
import json
import math
import statistics
from collections import Counter, defaultdict
from pathlib import Path

import torch
from parity_models import MODELS
from torch import nn

from pytest_amp.experiment.job import Job
from pytest_amp.experiment.run import laboratory
from pytest_amp.judge import anchor, loss
from pytest_amp.judge import parity as parity_judge
from pytest_amp.judge.case import Limits
from pytest_amp.lab.machine.device import choose
from pytest_amp.lab.phases import parity
from pytest_amp.observations import Floor, Observations, ParityRun, SeedRun, Start
from pytest_amp.progress import Progress
from pytest_amp.recipes import Recipes
from pytest_amp.settings.resolved import resolve

HEALTHY = "healthy"
LIMITS = Limits(loss_atol_is_chosen=False)


def setup_of(name, fault=HEALTHY):
    """Return the setup of a model's training, with a fault in the amp arm."""
    build, data, loss_of, optimizer_of = MODELS[name]

    def setup(arm):
        plant = FAULTS[fault] if arm.name == "amp" else Fault()
        model = build()
        plant.model(model)
        draw = data()
        optimizer = optimizer_of(model.parameters(), plant.rate)
        loss_fn = plant.loss(nn.functional.cross_entropy, arm)

        def step():
            optimizer.zero_grad(set_to_none=True)
            plant.before(model)
            batch = draw()
            with arm.autocast():
                loss = loss_of(plant.seen(model), batch, loss_fn)
            arm.scaler.scale(loss).backward()
            arm.scaler.unscale_(optimizer)
            plant.gradients(model)
            arm.scaler.step(optimizer)
            arm.scaler.update()
            plant.after(model)
            return loss

        return step

    return setup


class Fault:
    """What a fault changes; this one changes nothing."""

    rate = 1.0

    def model(self, model):
        pass

    def loss(self, function, _arm):
        return function

    def seen(self, model):
        return model

    def before(self, model):
        pass

    def gradients(self, model):
        pass

    def after(self, model):
        pass


class Slow(Fault):
    """The learning rate is halved."""

    rate = 0.5


class CoarseLayer(Fault):
    """The output of the first layer keeps two bits; its gradient goes straight through."""

    def model(self, model):
        layer = next(m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.LSTM))
        layer.register_forward_hook(self._coarse)

    def _coarse(self, layer, args, out):
        if isinstance(out, tuple):
            return (self._coarse(layer, args, out[0]), *out[1:])
        fraction, exponent = torch.frexp(out.detach().float())
        near = torch.ldexp(torch.round(fraction * 4) / 4, exponent)
        return out + (near - out.detach().float()).to(out.dtype)


class HalfWeights(Fault):
    """The weights are kept in bfloat16, so that small updates are lost."""

    @torch.no_grad()
    def after(self, model):
        for each in model.parameters():
            each.copy_(each.bfloat16())


class LossInHalf(Fault):
    """The cross entropy is computed and summed in the reduced dtype."""

    def loss(self, _function, arm):
        def in_half(logits, target):
            low = logits.to(arm.dtype)
            with torch.autocast("cpu", enabled=False):
                total = low.exp().sum(-1).log() - low.gather(-1, target[:, None])[:, 0]
                return total.sum() / len(total)

        return in_half


class SmallGradientsLost(Fault):
    """Gradients below a hundredth of a tensor's largest are zero."""

    @torch.no_grad()
    def gradients(self, model):
        for each in model.parameters():
            if each.grad is not None:
                each.grad[each.grad.abs() < each.grad.abs().max() / 100] = 0


class Biased(Fault):
    """What the last layer returns is 5% too large."""

    def model(self, model):
        *_, layer = (m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d))
        layer.register_forward_hook(lambda _layer, _args, out: out * 1.05)


class Stale(Fault):
    """The forward pass sees weights that are one update old."""

    def before(self, model):
        new = [each.detach().clone() for each in model.parameters()]
        old = getattr(model, "_old", new)
        for each, value in zip(model.parameters(), old, strict=True):
            each.data = value.clone()
        model._new = new

    def gradients(self, model):
        for each, value in zip(model.parameters(), model._new, strict=True):
            each.data = value
        model._old = [each.detach().clone() for each in model.parameters()]


class Doubled(Fault):
    """Every second gradient counts twice."""

    @torch.no_grad()
    def gradients(self, model):
        model._calls = getattr(model, "_calls", 0) + 1
        for each in model.parameters():
            if each.grad is not None and model._calls % 2:
                each.grad.mul_(2)


class NoDropout(Fault):
    """Dropout is off."""

    def model(self, model):
        for each in model.modules():
            if isinstance(each, nn.Dropout):
                each.p = 0.0


class Frozen(Fault):
    """The last layer gets no gradient."""

    @torch.no_grad()
    def gradients(self, model):
        *_, layer = (m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d))
        for each in layer.parameters():
            each.grad.zero_()


FAULTS = {
    HEALTHY: Fault(),
    "half the learning rate": Slow(),
    "a layer of two bits": CoarseLayer(),
    "weights in bfloat16": HalfWeights(),
    "loss in half": LossInHalf(),
    "small gradients lost": SmallGradientsLost(),
    "output 5% too large": Biased(),
    "weights one update old": Stale(),
    "every second gradient twice": Doubled(),
    "dropout off": NoDropout(),
    "last layer frozen": Frozen(),
}


def train(name, seed, dtype, steps):
    """Return the loss curves of a model from one seed: of both arms, nudged, and in float64."""
    settings = resolve([("cli", {"dtype": dtype, "seed": seed, "static": True, "steps": steps})])
    out = {"model": name, "seed": seed, "dtype": dtype, "amp": {}, "fp32": {}}
    for fault in FAULTS:
        with laboratory(Job(name, setup_of(name, fault), choose("cpu"), settings), Progress()) as b:
            amp, skips = parity.run(b, "amp", steps)
            out["amp"][fault] = amp.losses["loss"]
            if fault == HEALTHY or amp.skipped_steps:
                fp32, _ = parity.run(b, "fp32", steps, skips)
                out["fp32"][fault] = fp32.losses["loss"]
            if fault == HEALTHY:
                nudged = parity.floor(b, steps, skips, other_stream=False)
                out["floor"] = nudged.losses["loss"]
                out["float64"] = parity.anchor(b, steps, skips, math.inf)["loss"]
    return out


def seen_of(runs, fault, dtype):
    """Return what an experiment over these seeds would have seen."""
    arms = [
        (
            run["seed"],
            ParityRun({"loss": tuple(run["fp32"].get(fault, run["fp32"][HEALTHY]))}, moved=True),
            ParityRun({"loss": tuple(run["amp"][fault])}, moved=True),
        )
        for run in runs
    ]
    (seed, fp32, amp), *further = arms
    same = fault not in runs[0]["fp32"] or fault == HEALTHY  # skips make it another training
    return Observations(
        device="", dtype=dtype, native_support=True, fp32=fp32, amp=amp, seed=seed,
        floor=Floor({"loss": tuple(runs[0]["floor"])}, Start(), 2, other_stream=False),
        anchor={"loss": tuple(runs[0]["float64"])} if same else None,
        seeds=tuple(SeedRun(*each) for each in further),
        recipes=Recipes.autocast(dtype),
    )  # fmt: skip


def table(paths):
    """Print what the gate said, by fault."""
    runs = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    for dtype in dict.fromkeys(run["dtype"] for run in runs):
        mine = defaultdict(list)
        for run in runs:
            if run["dtype"] == dtype:
                mine[run["model"]].append(run)
        seeds = min(map(len, mine.values()))
        print(f"{dtype}: {len(mine)} models, {seeds} seeds, torch {torch.__version__}")
        print(f"{'':<44}{'one seed':>18}{'five seeds':>18}{'ten seeds':>18}  error / explained")
        print(f"{'fault':<30}{'moves':>6}{'models':>8}" + f"{'fail open pass':>18}" * 3)
        for fault in FAULTS:
            _rows(fault, mine, dtype, seeds)


def _rows(fault, mine, dtype, seeds):
    """Print a row for the models whose loss the fault moves too far, and one for the others."""
    by_harm = defaultdict(list)
    for name, runs in mine.items():
        tails = [parity_judge.compare(s.fp32.losses, s.amp.losses)[0]
                 for s in (seen_of([run], fault, dtype) for run in runs)]  # fmt: skip
        sizes = statistics.fmean(tail.fp32 for tail in tails)
        moved = statistics.fmean(tail.amp - tail.fp32 for tail in tails) / sizes
        by_harm[not abs(moved) <= LIMITS.max_loss_diff].append(name)
    for harms in sorted(by_harm, reverse=True):
        cells, errors = [], []
        for size in (1, 5, 10):
            said = Counter()
            for name in by_harm[harms]:
                for first in range(0, seeds - size + 1, size):
                    seen = seen_of(mine[name][first : first + size], fault, dtype)
                    said[loss.gate(seen, LIMITS).verdict] += 1
                    if size == 1 and (found := anchor.errors(seen, "loss")):
                        errors.append(found.multiple / found.explained)
            cells.append(f"{said['fail']:>8}{said['inconclusive']:>5}{said['pass']:>5}")
        spread = f"{min(errors):.2f} to {max(errors):.3g}" if errors else "-"
        median = f", median {statistics.median(errors):.2g}" if errors else ""
        moves = "" if fault == HEALTHY else ">2%" if harms else "less"
        print(f"{fault:<30}{moves:>6}{len(by_harm[harms]):>8}{''.join(cells)}  {spread}{median}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seeds", default="0-20", help="the first, and the one behind the last")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("parity.jsonl"))
    parser.add_argument("--models", nargs="+", choices=MODELS)
    parser.add_argument("--table", type=Path, nargs="+")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.table:
        table(options.table)
        return
    for seed in range(*map(int, options.seeds.split("-"))):
        for name in options.models or MODELS:
            try:
                line = train(name, seed, options.dtype, options.steps)
            except RuntimeError as error:  # oneDNN has no float16 LSTM for some processors
                print(f"{name} does not train in {options.dtype}: {str(error).splitlines()[0]}")
                continue
            with options.out.open("a") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
