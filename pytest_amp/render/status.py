"""The one live line on a terminal while a test runs. Writing it is the caller's business."""

from __future__ import annotations

from pytest_amp.render.text import ascii_only, cut, shorten

_LEAST_NAME = 16


def status_line(
    nodeid: str,
    phase: str | None,
    arm: str | None,
    done: int | None,
    total: int | None,
    estimate: str | None,
    width: int,
) -> str:
    """What runs now, in at most `width` characters of ASCII and without a line break.

    ``tests/test_vit.py::test_vit  timing, amp, 12 of 20, 1.52x [1.48, 1.55]``. The node id gives
    way first. What is None or empty is left out: `arm` where both take part, `total` where nobody
    knows it yet, `estimate` (the speedup so far, as text) before the first pair.
    """
    count = "" if done is None else str(done) if total is None else f"{done} of {total}"
    words = ascii_only(", ".join(part for part in (phase, arm, count, estimate) if part))
    name = shorten(nodeid, max(width - len(words) - 2, _LEAST_NAME))
    return cut(f"{name}  {words}".rstrip(), width)
