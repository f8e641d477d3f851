"""AMP3xx: whether the numbers stay what they were."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pytest_amp import units
from pytest_amp.judge.parity import first_nonfinite, noise_floor
from pytest_amp.judge.rules.base import Case, Rule, Word


def nonfinite_loss(case: Case) -> Iterator[Word]:
    seen = case.seen
    step = first_nonfinite(seen.amp.losses, seen.fp32.losses)
    if step is None:
        return
    origin = seen.nonfinite_origin
    if origin is None:
        place = "running that step again did not show where"
    else:
        module = f" in {origin.module}" if origin.module else ""
        place = f"the first to leave the finite range was {origin.op}{module}"
    remedy = (
        "keep that part in float32 (torch.autocast(..., enabled=False)) or use bfloat16"
        if seen.dtype == "float16"
        else "keep that part in float32 (torch.autocast(..., enabled=False))"
    )
    yield Word(
        f"the amp loss is not finite at step {step + 1}, where fp32's is; {place}; {remedy}",
        {"step": step + 1, "op": None if origin is None else origin.op},
        module=None if origin is None else origin.module,
    )


def below_noise_floor(case: Case) -> Iterator[Word]:
    gate, wanted = case.gates["loss_diff"], case.limits.max_loss_diff
    if gate.verdict != "inconclusive" or wanted is None:
        return
    seen = case.seen
    floor = max(noise_floor(seen.fp32.losses, seen.floor, key) for key in seen.fp32.losses)
    if wanted < floor < math.inf:
        yield Word(
            f"max_loss_diff={wanted:g} is tighter than this model's own rounding noise "
            f"({units.share(floor)} after one ulp of {seen.dtype} in its weights): raise it above "
            "that, train more steps, or make the step less chaotic (a smaller learning rate)",
            {"max_loss_diff": wanted, "noise_floor": floor},
        )


RULES = (Rule("AMP301", nonfinite_loss), Rule("AMP305", below_noise_floor))
