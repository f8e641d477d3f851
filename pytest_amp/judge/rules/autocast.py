"""AMP1xx: whether autocast did what it is there for."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_amp.judge.rules.base import Case, Rule, Word
from pytest_amp.records import REDUCED


def amp_no_op(case: Case) -> Iterator[Word]:
    operators = case.seen.amp.operators
    if operators is None or operators.hidden_reduced:
        return
    if operators.flops:
        if operators.reduced_flops():
            return
        what = "matmul, convolution or attention FLOP"
    else:
        if operators.reduced_bytes() or not sum(operators.bytes_by_dtype.values()):
            return
        what = "byte of activations"
    why = (
        "autocast was not in force; run the forward pass and the loss under arm.autocast()"
        if not operators.autocast_entered
        else "autocast was entered, but around nothing that it casts; see that arm.autocast() "
        "covers the forward pass, on the device that the model is on"
    )
    yield Word(
        f"not one {what} of the amp arm ran in {case.seen.dtype}: {why}",
        {
            "flops_by_dtype": dict(operators.flops_by_dtype),
            "bytes_by_dtype": dict(operators.bytes_by_dtype),
            "autocast_entered": operators.autocast_entered,
        },
    )


def dtype_substituted(case: Case) -> Iterator[Word]:
    operators = case.seen.amp.operators
    if operators is None:
        return
    amounts = operators.flops_by_dtype if operators.flops else operators.bytes_by_dtype
    ran = [dtype for dtype in REDUCED if amounts.get(dtype)]
    if ran and case.seen.dtype not in ran:
        yield Word(
            f"the amp arm ran in {ran[0]} where {case.seen.dtype} was asked for: every figure "
            f"here is {ran[0]}'s; ask for it (dtype={ran[0]!r}), or pass arm.dtype on",
            {"asked": case.seen.dtype, "ran": ran[0]},
        )


RULES = (
    Rule("AMP101", amp_no_op),
    Rule("AMP108", dtype_substituted),
)
