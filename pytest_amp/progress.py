"""Keep track of where the experiment is, for the live line and for naming the place of an error."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field


def _nothing(_: object) -> None: ...


@dataclass
class Progress:
    """The one mutable object that all phases share; `show` is called after each change.

    Attributes:
        show: displays this object.
        say: displays a line of text that stays.
        phase: the phase that is running; None before the first.
        arm: the arm that the phase works on; None if it works on both.
        step: the step within the phase, from 1.
        total: how many steps the phase has, if that is known.
        estimate: the running estimate as text, while timing.
        why_slow: what is known about a step that takes long.
        seconds: what each phase has taken so far.
        began: when the experiment began, by the same clock as `seconds`.
        raised_alone: what is known of the exception that ended the experiment, if only one of the
            arms raises it; for the rules.
        led_to_it: the user's line that led to a GradScaler's exception, if another one raised it.
    """

    show: Callable[[Progress], None] = _nothing
    say: Callable[[str], None] = _nothing
    phase: str | None = None
    arm: str | None = None
    step: int | None = None
    total: int | None = None
    estimate: str | None = None
    why_slow: str | None = None
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    began: float = field(default_factory=time.perf_counter)
    raised_alone: object = None
    led_to_it: str | None = None
    _since: float = field(default_factory=time.perf_counter)
    _steps_since: float = field(default_factory=time.perf_counter)

    def at(
        self,
        phase: str,
        arm: str | None,
        step: int | None = None,
        total: int | None = None,
        estimate: str | None = None,
    ) -> None:
        """Move to a place in the experiment and show it."""
        self.count()
        if (phase, arm) != (self.phase, self.arm) or step == 1:
            self._steps_since = self._since
        self.phase, self.arm, self.step, self.total = phase, arm, step, total
        self.estimate = estimate
        self.show(self)

    def count(self) -> None:
        """Charge the time since the last call to the current phase."""
        now = time.perf_counter()
        if self.phase is not None:
            self.seconds[self.phase] += now - self._since
        self._since = now

    def begin_anew(self) -> None:
        """Forget the phases so far, since none of what they found counts."""
        self.phase = None
        self.seconds.clear()

    @property
    def step_s(self) -> float | None:
        """Mean seconds per step in this phase so far; None before the first step is done."""
        if self.step is None or self.total is None or self.step < 2:
            return None
        return (self._since - self._steps_since) / (self.step - 1)

    def place(self) -> str:
        """Describe the place in words: ``the amp arm, step 3 (parity)``."""
        arm = "the test" if self.arm is None else f"the {self.arm} arm"
        counted = "pair" if self.phase == "timing" else "step"
        step = "" if self.step is None else f", {counted} {self.step}"
        return f"{arm}{step}" + (f" ({self.phase})" if self.phase else "")
