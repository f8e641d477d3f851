"""AMP1xx: whether autocast did its job."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from pytest_amp import units
from pytest_amp.judge.case import Case
from pytest_amp.observations import REDUCED, Operators, ParityRun
from pytest_amp.recipes import Recipe
from pytest_amp.rules.base import Word, rule
from pytest_amp.rules.places import where_it_ran


@rule("AMP101")
def amp_no_op(case: Case) -> Iterator[Word]:
    """Look for an amp arm in which no eligible work ran in a reduced dtype.

    Eligible are matrix products, convolutions and attention; in a step without these, any bytes of
    activations. Work out of sight keeps the rule silent if it may have run in reduced precision.
    """
    operators, recipe = case.seen.amp.operators, case.seen.recipes.amp
    yield from unprepared(case.seen.amp, recipe, "the amp arm")
    if operators is None or operators.hidden_reduced or recipe.dtype == "float32":
        return
    if operators.flops:
        if operators.reduced_flops() or operators.float8_flops():
            return
        what = "matmul, convolution or attention FLOP"
    else:
        if operators.reduced_bytes() or not sum(operators.bytes_by_dtype.values()):
            return
        what = "byte of activations"
    if recipe.autocast_dtype is None:
        yield Word(
            f"not one {what} of the amp arm ran in {case.seen.dtype}, which {recipe} keeps the "
            "model in: train what arm.prepare(model) returns",
            {"flops_by_dtype": dict(operators.flops_by_dtype)},
            location=where_it_ran(operators, tuple(operators.flops_by_dtype)),
        )
        return
    elsewhere = [d for d in operators.autocast_devices if d != case.seen.device_type]
    work = max(operators.rows, key=lambda row: (row.flops, row.bytes), default=None)
    line = work.location if work else None
    off = [r for r in operators.regions if r.dtype is None and r.device == case.seen.device_type]
    most = max(off, key=lambda region: (region.flops, region.bytes), default=None)
    if any(row.lacks_autocast for row in operators.rows):
        why = "autocast was entered, but the work ran in other threads, which do not inherit it"
        cure = "enter arm.autocast() inside the function that the thread runs"
    elif most is not None and (most.flops or (most.bytes and not operators.flops)):
        why = "a region that is switched off (enabled=False) " + (
            "inside of the arm's keeps the work in float32" if most.nested else "is around the work"
        )
        cure = "leave it out, or pass it enabled=arm.enabled"
        line = most.location or line
    elif operators.autocast_entered and not elsewhere:
        why = "autocast was entered, but around nothing that it casts"
        cure = "see that arm.autocast() covers the forward pass, on the device that the model is on"
    else:
        here = case.seen.device_type
        why = (
            f"autocast was entered for {' and '.join(elsewhere)}, and this is {here}"
            if elsewhere
            else "autocast was not in force"
        )
        cure = "run the forward pass and the loss under arm.autocast()"
        line = next((r.location for r in operators.regions if r.device in elsewhere), None) or line
    if operators.framework is not None:
        cure = _switch(operators.framework, case)
    yield Word(
        f"not one {what} of the amp arm ran in {case.seen.dtype}: {why}; {cure}",
        {
            "flops_by_dtype": dict(operators.flops_by_dtype),
            "bytes_by_dtype": dict(operators.bytes_by_dtype),
            "autocast_entered": operators.autocast_entered,
        },
        location=line,
    )


def unprepared(run: ParityRun, recipe: Recipe, arm: str) -> Iterator[Word]:
    """Say what of a recipe came to nothing: layers that were not converted, or not compiled."""
    operators = run.operators
    if recipe.compile is not None and not run.compiled:
        yield Word(
            f"{arm} is to run compiled ({recipe}), and torch.compile compiled nothing: train what "
            "arm.prepare(model) returns, and see that nothing disables the compiler",
            {"recipe": str(recipe), "graphs": 0},
            no_place="it is about a call that is missing",
        )
    if recipe.float8 is None or operators is None or operators.hidden:
        return
    if not any(dtype.startswith("float8") for dtype in operators.bytes_by_dtype):
        yield Word(
            f"{arm} is to run in float8 ({recipe}), and not one tensor of it was: train what "
            "arm.prepare(model) returns; it converts linear layers whose features are multiples "
            "of 16",
            {"recipe": str(recipe), "bytes_by_dtype": dict(operators.bytes_by_dtype)},
            location=where_it_ran(operators, tuple(operators.flops_by_dtype)),
        )


# By package: the framework's name, how it is told the arm's precision, and the dtypes that its
# regions cast to on a CPU.
_TRAINER = (
    "TrainingArguments(fp16=arm.mixed_precision == 'fp16', bf16=arm.mixed_precision == 'bf16')"
)
_LIGHTNING = "Lightning", "Trainer(precision=arm.lightning_precision)", ("bfloat16",)
_SWITCHES = {
    "accelerate": (
        "Accelerate",
        "Accelerator(mixed_precision=arm.mixed_precision)",
        ("bfloat16",),
    ),
    "ignite": ("Ignite", "amp_mode='amp' if arm.enabled else None", ()),
    "lightning": _LIGHTNING,
    "pytorch_lightning": _LIGHTNING,
    "transformers": ("the Trainer", _TRAINER, ("bfloat16",)),
}


def _switch(framework: str, case: Case) -> str:
    """Say what turns autocast on in a training loop that belongs to a framework."""
    name, switch, on_cpu = _SWITCHES[framework]
    if case.seen.device_type != "cpu" or case.seen.dtype in on_cpu:
        return f"{name} enters it where it is told to, with {switch}"
    only = f"to {' and '.join(on_cpu)} alone" if on_cpu else "nothing"
    other = ", or with --amp-dtype=bfloat16" if on_cpu else ""
    return f"on a CPU, {name} casts {only}, whatever it is told: check this step on a GPU{other}"


# Autocast casts to float16 for these operators by name, as seen on an H100 with torch 2.11.
_RECURRENT = ("aten::_cudnn_rnn", "aten::miopen_rnn")


@rule("AMP108")
def dtype_substituted(case: Case) -> Iterator[Word]:
    """Look for work that ran in another reduced dtype than the one that was asked for.

    That is either all of the step, or the recurrent layers alone: cuDNN gets float16 from autocast
    even if bfloat16 was asked for.
    """
    operators = case.seen.amp.operators
    if operators is None:
        return
    asked = case.seen.dtype
    amounts = operators.flops_by_dtype if operators.flops else operators.bytes_by_dtype
    ran = [dtype for dtype in REDUCED if amounts.get(dtype)]
    recurrent = [
        row for row in operators.rows
        if row.flops and row.dtype in REDUCED and row.dtype != asked and row.op in _RECURRENT
    ]  # fmt: skip
    if recurrent:
        first = recurrent[0]
        yield Word(
            f"the recurrent layers ran in {first.dtype} where {asked} was asked for: autocast "
            "gives cuDNN float16 whatever its dtype, and without a GradScaler small gradients are "
            f"lost there; ask for {first.dtype} (dtype={first.dtype!r}), or keep these layers in "
            "float32, in a region with enabled=False",
            {"asked": asked, "ran": first.dtype},
            module=first.module,
            location=first.location,
        )
    elif case.seen.recipes.amp.parameter_dtype in REDUCED:
        yield from _left_wide(operators, case)
    elif ran and asked not in ran:
        yield Word(
            f"the amp arm ran in {ran[0]} where {asked} was asked for: every figure "
            f"here is {ran[0]}'s; ask for it (dtype={ran[0]!r}), or pass arm.dtype on",
            {"asked": asked, "ran": ran[0]},
            location=where_it_ran(operators, ran),
        )


def _left_wide(operators: Operators, case: Case) -> Iterator[Word]:
    """Say which products ran in float32 in a model that is to be kept in a reduced dtype."""
    rows = [row for row in operators.rows if row.flops and row.phase == "forward"]
    wide = [row for row in rows if row.dtype == "float32" and not row.chosen]
    if not wide or len(wide) == len(rows):  # of the second, AMP101 speaks
        return
    share = sum(row.flops for row in wide) / sum(row.flops for row in rows)
    most = max(wide, key=lambda row: row.flops)
    yield Word(
        f"{units.share(share)} of the forward FLOPs ran in float32, in a model that is to be kept "
        f"in {case.seen.dtype} ({case.seen.recipes.amp}): prepare the whole model, or ask for "
        "autocast instead",
        {"asked": case.seen.dtype, "share": share, "op": most.op},
        module=most.module,
        location=most.location,
    )


@rule("AMP103")
def stale_autocast_cache(case: Case) -> Iterator[Word]:
    """Look for modules that used a weight's cast from before the weight's update."""
    operators = case.seen.amp.operators
    for stale in operators.stale if operators else ():
        name = stale.weight or "a weight"
        used = f" at {stale.location}" if stale.location and stale.region else ""
        yield Word(
            f"{name} was updated, and its cast from before the update was used again{used}: "
            "autocast keeps casts until its outermost region ends, so let each step have a region "
            "of its own (and leave every region that is entered)",
            {"module": stale.module, "weight": stale.weight, "used_at": stale.location},
            module=stale.module,
            location=stale.region or stale.location,
        )


@rule("AMP105")
def backward_under_autocast(case: Case) -> Iterator[Word]:
    """Look for backward passes that began inside an autocast region."""
    operators = case.seen.amp.operators
    if operators and operators.backward_under_autocast:
        times = units.plural(operators.backward_under_autocast, "call")
        yield Word(
            f"{times} of backward() began inside an autocast region: operators of the backward "
            "pass run in the dtypes of their forward pass by themselves, and autocast may cast "
            "them once more; end the region after the loss",
            {"backward_passes": operators.backward_under_autocast},
            location=operators.backward_under_autocast_at,
        )


@rule("AMP106")
def recompute_dtype(case: Case) -> Iterator[Word]:
    """Look for modules whose recomputation shares no dtype with their forward pass.

    One shared dtype is enough to stay silent, since a module may rightly mix dtypes.
    """
    first = _products(case, "forward", "module")
    alike: defaultdict[tuple[frozenset[str], frozenset[str], str | None], list[str]]
    alike = defaultdict(list)
    for module, again in _products(case, "recompute", "module").items():
        before = first.get(module)
        if before and not again & before:
            line = _line_of_products(case, "recompute", "module", module)
            alike[frozenset(before), frozenset(again), line].append(module)
    for (ahead, repeated, line), modules in alike.items():
        more = f" ({', '.join(modules[:3])}{', ...' * (len(modules) > 3)})" if modules[1:] else ""
        yield Word(
            f"a checkpointed segment{more} ran in {_or(ahead)} and is computed again in "
            f"{_or(repeated)}: its gradients belong to a different forward pass; recompute it "
            "under the same autocast state (torch.utils.checkpoint does so by itself)",
            {"forward": sorted(ahead), "recompute": sorted(repeated), "modules": modules},
            module=modules[0] or None,
            location=line,
        )


@rule("AMP107")
def custom_function_dtype(case: Case) -> Iterator[Word]:
    """Look for custom autograd functions whose forward and backward share no dtype."""
    forward = _products(case, "forward", "function")
    for function, back in _products(case, "backward", "function").items():
        ahead = forward.get(function)
        if function and ahead and not ahead & back:
            yield Word(
                f"{function}'s forward runs in {_or(ahead)}, its backward in {_or(back)}: decorate "
                "them with torch.amp.custom_fwd and torch.amp.custom_bwd of this device type, so "
                "that both see the same autocast state",
                {"function": function, "forward": sorted(ahead), "backward": sorted(back)},
                location=_line_of_products(case, "forward", "function", function),
            )


@rule("AMP110")
def autocast_not_inherited(case: Case) -> Iterator[Word]:
    """Look for matrix products that other threads ran in float32, on behalf of a region."""
    operators = case.seen.amp.operators
    rows = [row for row in operators.rows if row.flops] if operators else []
    lost = [row for row in rows if row.lacks_autocast and row.dtype == "float32"]
    if not lost:
        return
    forward = sum(row.flops for row in rows if row.phase == "forward")
    share = sum(row.flops for row in lost) / forward
    most = max(lost, key=lambda row: row.flops)
    yield Word(
        f"{units.share(share)} of the forward FLOPs ran in float32 in other threads: autocast was "
        "in force where they got the work, but holds only for the thread that enters it; enter "
        "torch.autocast (arm.autocast()) inside the function that the thread runs",
        {"share": share, "op": most.op},
        module=most.module,
        location=most.location,
    )


def _products(case: Case, phase: str, key: str) -> dict[str, set[str]]:
    """Return the dtypes of the amp arm's matrix products in a phase, by module or function."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    operators = case.seen.amp.operators
    for row in operators.rows if operators else ():
        if row.flops and row.phase == phase:
            found[getattr(row, key) or ""].add(row.dtype)
    return dict(found)


def _line_of_products(case: Case, phase: str, key: str, value: str) -> str | None:
    """Return the user's line of the first of these matrix products."""
    rows = case.seen.amp.operators.rows if case.seen.amp.operators else ()
    mine = (row for row in rows if row.flops and row.phase == phase)
    return next((row.location for row in mine if (getattr(row, key) or "") == value), None)


def _or(dtypes: Iterable[str]) -> str:
    return " and ".join(sorted(dtypes))
