"""Find where on its way back a gradient turns to zero in the amp arm alone."""

from __future__ import annotations

import math
from contextlib import nullcontext

from pytest_amp.errors import unless_our_bug
from pytest_amp.lab.arm import ArmName, Workbench
from pytest_amp.lab.scaling.step_watch import starting_at
from pytest_amp.lab.watch.node_gradients import Key, NodeGradients, Seen
from pytest_amp.observations import Zeroed

__tracebackhide__ = unless_our_bug


def locate(bench: Workbench, scale: float | None, least: float) -> Zeroed | None:
    """Compare both arms' first backward passes node by node, and return the first that loses much.

    Args:
        bench: builds the arms.
        scale: the loss scale to begin at; None without a GradScaler.
        least: the share of what is not zero in the fp32 arm that is much.
    """
    fp32, amp = _first_step(bench, "fp32", None), _first_step(bench, "amp", scale)
    scaled = amp.root / fp32.root if amp.root and fp32.root else 1.0
    for key, made in amp.made.items():
        expected = _expected(fp32, amp, key, scaled)
        for mine, theirs in zip(made, expected, strict=False):
            if mine is None or theirs is None or not theirs.alive:
                continue
            lost = 1 - mine.alive / theirs.alive
            if lost >= least:
                place, (node, location, _) = amp.places[key], key
                op, module = (place.op, place.module) if place else (None, None)
                return Zeroed(op, module, location, node, lost, theirs.size)
    return None


def _first_step(bench: Workbench, name: ArmName, scale: float | None) -> NodeGradients:
    bench.progress.at("locating", name)
    begun = starting_at(scale) if scale and math.isfinite(scale) else nullcontext()
    with begun, bench.built(name) as resident, resident.active():
        with NodeGradients().watching() as watch:
            resident.step()
        return watch


def _expected(
    fp32: NodeGradients, amp: NodeGradients, key: Key, scaled: float
) -> list[Seen | None]:
    """Return what a node of the amp arm should have made; a cast should pass on what it is given.

    The fp32 arm has no casts. Of another node that it does not have, nothing is expected.
    """
    if key in fp32.made:
        return [each and Seen(each.alive, each.size * scaled) for each in fp32.made[key]]
    return amp.given[key] if key[0].startswith("ToCopy") else []
