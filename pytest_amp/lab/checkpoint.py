"""What a user's checkpoint holds, as ``arm.checkpoint(...)`` was told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pytest_amp.errors import AmpError, unless_our_bug
from pytest_amp.lab.watch.source import location

__tracebackhide__ = unless_our_bug


class Checkpoint(NamedTuple):
    """The objects whose state a checkpoint holds, by name, and the user's line that said so."""

    state: Mapping[str, Any]
    location: str | None


def checkpoint_of(state: Mapping[str, Any], earlier: Checkpoint | None) -> Checkpoint:
    """Return the checkpoint that the user's line describes, together with an earlier line's.

    Raises:
        AmpError: one of the objects can't be saved and loaded.
    """
    for name, value in state.items():
        methods = (getattr(value, each, None) for each in ("state_dict", "load_state_dict"))
        if not all(map(callable, methods)):
            raise AmpError(
                f"arm.checkpoint({name}=...) got a {type(value).__name__}, which has no "
                "state_dict() and load_state_dict(): leave it out, or wrap it in an object that "
                "has them"
            )
    return Checkpoint({**(earlier.state if earlier else {}), **state}, location())
