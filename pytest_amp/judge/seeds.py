"""What several seeds showed of the loss."""

from __future__ import annotations

from pytest_amp.judge import loss, parity
from pytest_amp.observations import Observations
from pytest_amp.results.seeds import SeedTails


def alike(seen: Observations) -> str | None:
    """Return a note if seeds did not change what they are to change; None if they did."""
    starts = {run.fp32.start.parameters for run in loss.of_seeds(seen)}
    if not loss.seeds_differ(seen):
        return (
            "every seed made the same training, so they count as one: build the model and draw the "
            "data in setup(arm), and do not seed there (a trainer may have a seed of its own)"
        )
    if len(starts) == 1 and None not in starts:
        return (
            "every seed began with the same weights, so that only data and random draws differ; "
            "build the model in setup(arm) to draw its weights anew"
        )
    return None


def summed_up(seen: Observations) -> tuple[SeedTails, ...]:
    """Return the ends of both curves for each seed; nothing with one seed."""
    if not seen.seeds:
        return ()
    found = []
    for run in loss.of_seeds(seen):
        tails = parity.compare(run.fp32.losses, parity.once_scaled(run.amp))
        found.append(
            SeedTails(
                run.seed,
                {tail.key: tail.fp32 for tail in tails},
                {tail.key: tail.amp for tail in tails},
            )
        )
    return tuple(found)
