"""AMP102 and AMP104: whether trained parameters stay in float32 and get gradients under AMP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pytest_amp import units
from pytest_amp.judge.case import Case
from pytest_amp.observations import REDUCED, Parameter
from pytest_amp.rules.base import Word, rule


@rule("AMP102")
def half_parameters(case: Case) -> Iterator[Word]:
    """Look for trained parameters that are kept in reduced precision.

    It is an error if only the amp arm does so. If both arms do, as under an adapter, it is taken to
    be on purpose, and is a warning.
    """
    trained, fp32 = case.seen.amp.parameters, case.seen.fp32.parameters
    yield from _as_the_recipe_has_it(case)
    meant = case.seen.recipes.amp.parameter_dtype
    wrong = [dtype for dtype in REDUCED if dtype != meant]
    reduced = [each for each in trained if each.dtype in wrong]
    if not reduced:
        return
    alike = len(fp32) == len(trained)
    ours = [
        each
        for index, each in enumerate(trained)
        if each.dtype in wrong and not (alike and fp32[index].dtype == each.dtype)
    ]
    named = ours or reduced
    dtypes = ", ".join(sorted({each.dtype for each in named}))
    where = "the amp arm" if ours else "both arms"
    yield Word(
        f"{len(named)} of {units.plural(len(trained), 'trained parameter')} of {where} "
        f"are kept in {dtypes} ({_first_names(named)}): updates smaller than their rounding are "
        "lost; keep them in float32 and let autocast cast them"
        + ("" if ours else ", unless they are rounded on purpose, as stochastically"),
        {"reduced": len(named), "trained": len(trained), "dtypes": dtypes},
        severity=None if ours else "warning",
        module=_module_of(named[0]),
        location=case.seen.amp.place_of(named[0]),
    )


def _as_the_recipe_has_it(case: Case) -> Iterator[Word]:
    """Say what may be why the losses differ where the model itself is kept in a reduced dtype."""
    recipe, gate = case.seen.recipes.amp, case.gates.get("loss_diff")
    trained = case.seen.amp.parameters
    kept = [each for each in trained if each.dtype == recipe.parameter_dtype]
    if recipe.parameter_dtype not in REDUCED or not kept or gate is None or gate.verdict != "fail":
        return
    yield Word(
        f"{len(kept)} of {units.plural(len(trained), 'trained parameter')} are kept in "
        f"{recipe.parameter_dtype}, as {recipe} has it, where updates smaller than their rounding "
        "are lost; use autocast, an optimizer that keeps a float32 copy, or one that rounds "
        "stochastically",
        {"reduced": len(kept), "trained": len(trained), "dtypes": recipe.parameter_dtype},
        severity="warning",
        module=_module_of(kept[0]),
        location=case.seen.amp.place_of(kept[0]),
    )


@rule("AMP104")
def missing_gradients(case: Case) -> Iterator[Word]:
    """Look for parameters that have a gradient in some fp32 step and in no amp step.

    "In no step" leaves out parameters that routing skips now and then.
    """
    fp32, amp = case.seen.fp32.parameters, case.seen.amp.parameters
    if len(fp32) != len(amp):
        return
    lost = [
        ours for ours, theirs in zip(amp, fp32, strict=True)
        if theirs.has_gradient and not ours.has_gradient
    ]  # fmt: skip
    if lost:
        yield Word(
            f"{units.plural(len(lost), 'parameter')} that train{'s' * (len(lost) == 1)} in fp32 "
            f"got no gradient under amp "
            f"in any step ({_first_names(lost)}): something cuts the graph there, such as a cast "
            "of .data, a detach, or a no_grad region that caches a cast",
            {"parameters": [each.name for each in lost]},
            module=_module_of(lost[0]),
            location=case.seen.amp.place_of(lost[0]),
        )


def _first_names(parameters: Iterable[Parameter]) -> str:
    """List the first two names, and say if there are more."""
    names = [each.name or "one outside of modules" for each in parameters]
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")


def _module_of(parameter: Parameter) -> str | None:
    return parameter.name.rpartition(".")[0] if parameter.name else None
