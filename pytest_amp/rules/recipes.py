"""AMP007: whether both arms train in the same way, apart from precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pytest_amp import units
from pytest_amp.judge.case import Case
from pytest_amp.observations import OptimizerUse
from pytest_amp.rules.base import Word, rule

# A scaler, or the step itself, may leave out steps that overflow; not a quarter of them.
FEWER_STEPS = 0.75
SAME_RATE = 1e-6
_CONVERTED = "Float8Linear("  # what a recipe makes of a linear layer


@rule("AMP007")
def recipes_differ(case: Case) -> Iterator[Word]:
    """Look for arms that train in different ways: what is measured is then not precision."""
    return differing_recipes(case)


def differing_recipes(case: Case) -> Iterator[Word]:
    """Say in which ways the arms train differently; other rules are silent where they do."""
    fp32, amp = case.seen.fp32, case.seen.amp
    shapes = _shapes(fp32.start.inputs), _shapes(amp.start.inputs)
    if all(shapes) and shapes[0] != shapes[1]:
        yield _word("first inputs", f"the shapes {shapes[0]}", shapes[1], amp.start.inputs_at)
    for number, (ours, theirs) in enumerate(zip(fp32.optimizers, amp.optimizers, strict=False)):
        moved_at = amp.scaler.moved_at.get(number) or fp32.scaler.moved_at.get(number)
        yield from _optimizers(ours, theirs, moved_at)
    for path, module in fp32.modules.items():
        other = amp.modules.get(path, module)
        if module != other and not other.startswith(_CONVERTED):
            within = path.partition(".")[2] or path
            where = amp.line_in(within) or amp.start.inputs_at
            yield _word("modules", module, other, where, within)
            return  # one tells enough, where a setting is passed to many
    rates = [each.operators.dropout_rates if each.operators else () for each in (fp32, amp)]
    if all(rates) and rates[0] != rates[1]:
        fp32_rates, amp_rates = (", ".join(map(units.number, each)) for each in rates)
        where = amp.operators.dropout_at if amp.operators else None
        yield _word("dropout", f"dropout with p={fp32_rates}", f"p={amp_rates}", where)


def _optimizers(fp32: OptimizerUse, amp: OptimizerUse, moved_at: str | None) -> Iterator[Word]:
    where, made = amp.location, amp.made_at or amp.location
    if fp32.name != amp.name:
        yield _word("optimizer", fp32.name, amp.name, location=made)
        return
    settings = _differing(fp32.settings, amp.settings)
    for name, (ours, theirs) in settings.items():
        yield _word("optimizer", f"{fp32.name} with {name}={ours}", f"{name}={theirs}", made)
    if not settings:
        yield from _schedules(fp32, amp, moved_at or where)
    counts = len(fp32.rates), len(amp.rates)
    if min(counts) < FEWER_STEPS * max(counts):
        steps = units.plural(counts[0], "step")
        yield _word("number of steps", f"{steps} of {fp32.name}", str(counts[1]), where)


def _schedules(fp32: OptimizerUse, amp: OptimizerUse, where: str | None) -> Iterator[Word]:
    for step, (ours, theirs) in enumerate(zip(fp32.rates, amp.rates, strict=False), 1):
        if ours is None or theirs is None:
            continue
        if abs(ours - theirs) > SAME_RATE * max(abs(ours), abs(theirs)):
            what = f"a learning rate of {ours:.3g} at step {step} of {fp32.name}"
            yield _word("schedule", what, f"{theirs:.3g}", where)
            return


def _differing(fp32: Mapping[str, str], amp: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    return {
        name: (fp32[name], amp[name]) for name in fp32 if name in amp and fp32[name] != amp[name]
    }


def _shapes(inputs: tuple[str, ...] | None) -> str:
    """Return the shapes of the first inputs, from their digests, such as ``[64, 16]``."""
    digests = [each.partition(":")[0] for each in inputs or ()]
    return ", ".join(each[each.index("[") :] for each in digests if "[" in each)


def _word(
    what: str, fp32: str, amp: str, location: str | None = None, module: str | None = None
) -> Word:
    return Word(
        f"the arms train in different ways: the fp32 arm has {fp32}, the amp arm {amp}; what is "
        "compared is not precision alone: give both arms the same",
        {"what": what, "fp32": fp32, "amp": amp},
        location=location,
        module=module,
    )
