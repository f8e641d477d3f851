"""Find where on its way back a gradient turns to zero, or leaves the fp32 arm's."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_amp.errors import unless_our_bug
from pytest_amp.judge.alignment import distance, leaves
from pytest_amp.lab.arm import ArmName
from pytest_amp.lab.scaling.step_watch import starting_at
from pytest_amp.lab.watch.forward_lines import Place
from pytest_amp.lab.watch.node_gradients import Key, NodeGradients, Seen
from pytest_amp.lab.workbench import Workbench
from pytest_amp.observations import Departure, Zeroed

__tracebackhide__ = unless_our_bug


def zeroed(bench: Workbench, scale: float | None, least: float) -> Zeroed | None:
    """Compare both arms' first backward passes node by node, and return the first that loses much.

    Args:
        bench: builds the arms.
        scale: the loss scale to begin at; None without a GradScaler.
        least: the share of what is not zero in the fp32 arm that is much.
    """
    fp32, amp, scaled = _both(bench, scale)
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


def departed(
    bench: Workbench, scale: float | None, dtype: str, forward: Mapping[str, float]
) -> Departure | None:
    """Return the first node of the amp arm whose gradients leave fp32's by more than it was given.

    Args:
        bench: builds the arms.
        scale: the loss scale to begin at; None without a GradScaler.
        dtype: the dtype that the amp arm rounds to.
        forward: how far what a line was given in the forward pass is off, which its gradient
            depends on too.
    """
    fp32, amp, scaled = _both(bench, scale)
    for key, made in amp.made.items():
        if key not in fp32.made:
            continue
        off = _off(fp32.made[key], made, scaled)
        before = _off(fp32.given[key], amp.given[key], scaled)
        before = max(before, forward.get(key[1] or "", 0.0))
        if leaves(off, before, dtype):
            place, node = amp.places[key] or Place(key[0], None, None), key[0]
            kept = next((each.dtype for each in made if each), dtype)
            return Departure(place.op, place.module, place.location, kept, off, before, node=node)
    return None


def _off(expected: list[Seen | None], found: list[Seen | None], scaled: float) -> float:
    """Return how far the gradients are off at most, apart from the loss scale."""
    pairs = [(a, b) for a, b in zip(expected, found, strict=False) if a and b]
    unscaled = ((a, tuple(number / scaled for number in b.sample)) for a, b in pairs)
    return max((distance(a.sample, b) for a, b in unscaled), default=0.0)


def _both(bench: Workbench, scale: float | None) -> tuple[NodeGradients, NodeGradients, float]:
    """Run both arms' first steps; return what was seen, and how much larger amp's loss is."""
    fp32, amp = _first_step(bench, "fp32", None), _first_step(bench, "amp", scale)
    return fp32, amp, amp.root / fp32.root if amp.root and fp32.root else 1.0


def _first_step(bench: Workbench, name: ArmName, scale: float | None) -> NodeGradients:
    bench.progress.at("locating", name)
    with starting_at(scale), bench.built(name) as resident, resident.active():
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
