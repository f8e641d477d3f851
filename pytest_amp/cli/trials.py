"""Write the trials of a tuning: a line for each while it runs, then a table and what to adopt."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from typing import Any

from pytest_amp import units
from pytest_amp.experiment.bisection import Say
from pytest_amp.experiment.search_space import (
    BATCH_SIZE,
    Choice,
    Space,
    described,
    recipe_of,
    suggested_in,
)
from pytest_amp.experiment.study import Trial
from pytest_amp.experiment.tuning import Course, Tuning
from pytest_amp.plugin.live_line import status_line
from pytest_amp.progress import Progress
from pytest_amp.render.text import ascii_only, cut
from pytest_amp.settings.table import BY_NAME

# What is counted, and what stands before the reason, by the verdict.
_ENDED = {
    "pass": ("passed", ""),
    "pruned": ("pruned", "pruned: "),
    "fail": ("failed", "failed: "),
    "error": ("raised", "raised "),
    "inconclusive": ("inconclusive", "inconclusive: "),
}
_WIDEST = 48
_LEAST_REASON = 40


class Lines(Course):
    """Writes a line for each trial and, on a terminal, shows below where the running one is."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._terminal = sys.stderr if sys.stderr.isatty() else None
        self._running = ""
        self._width = 0

    def begins(self, tuning: Tuning, space: Space, device: str) -> None:
        """Write what is going to be tried."""
        self._say(f"tuning on {device}, against {tuning.reference}")
        for name, values in space.tried.items():
            self._say(f"  {name}: {', '.join(_text(name, value) for value in values)}")
        for why in dict.fromkeys(space.left_out.values()):
            names = [name for name, reason in space.left_out.items() if reason == why]
            self._say(f"  not tried: {units.listed(names)}, because {why}")
        if tuning.trials:
            self._say(f"the study has {units.plural(len(tuning.trials), 'trial')} already")
        widest = max(len(described(choice)) for choice in space.choices())
        self._width = min(widest, _WIDEST)

    def trying(self, number: int, choice: Choice) -> None:
        """Note what is shown below from now on."""
        self._running = f"trial {number}, {described(choice)}"

    def tried(self, tuning: Tuning, trial: Trial) -> None:
        """Write how a trial came out."""
        self.clear()
        best = tuning.best
        is_best = best is not None and best.number == trial.number
        self._say(_row(trial, self._width) + "  fastest so far" * is_best)

    def says(self, text: str) -> None:
        """Write a text."""
        self.clear()
        self._say(text)

    def show(self, progress: Progress) -> None:
        """Redraw the line below."""
        if self._terminal is None:
            return
        shown = status_line(
            self._running, progress.phase, progress.arm, progress.step, progress.total,
            progress.estimate, shutil.get_terminal_size().columns - 1,
        )  # fmt: skip
        self._terminal.write(f"\r\x1b[2K{shown}")
        self._terminal.flush()

    def clear(self) -> None:
        """Erase the line below."""
        if self._terminal is not None:
            self._terminal.write("\r\x1b[2K")
            self._terminal.flush()


def _row(trial: Trial, width: int) -> str:
    """Return a trial on one line: its number, what was tried, and what came of it."""
    outcome = trial.outcome
    head = f"  {trial.number:>3}  {trial.text:<{width}}  "
    if outcome.verdict == "pass" and outcome.speedup is not None:
        middle, low, high = outcome.speedup
        return (
            f"{head}{units.duration(outcome.step_s):>8}  {units.ratio(middle):>5} "
            f"{units.interval(low, high)}"
        )
    room = shutil.get_terminal_size((10_000, 0)).columns - len(head)
    why = ascii_only(_ENDED[outcome.verdict][1] + outcome.why)
    return head + cut(why, max(room, _LEAST_REASON))


def conclusion(tuning: Tuning) -> Iterator[str]:
    """Yield the table of the trials that passed, the fastest first, and what to adopt."""
    trials, best = tuning.trials, tuning.best
    if not trials:
        return
    took = units.duration(sum(trial.outcome.seconds for trial in trials))
    counts = (
        (word, sum(trial.outcome.verdict == verdict for trial in trials))
        for verdict, (word, _) in _ENDED.items()
    )
    said = ", ".join(f"{count} {word}" for word, count in counts if count)
    yield ""
    if best is None:
        yield f"{units.plural(len(trials), 'trial')} in {took}: {said}, so nothing is to adopt"
        return
    passed = [trial for trial in trials if trial.outcome.verdict == "pass"]
    yield (
        f"{units.plural(len(trials), 'trial')} in {took}: {said}, by their time per "
        f"{timed(tuning)}:"
    )
    width = max(len(trial.text) for trial in passed)
    for trial in sorted(passed, key=lambda trial: trial.step_s):
        yield _row(trial, width)
    yield ""
    yield from _adopted(tuning, best)


def timed(tuning: Tuning) -> str:
    """Return what times are of: an example, where the batch size was tried too, or a step."""
    return "example" if any(BATCH_SIZE in trial.choice for trial in tuning.trials) else "step"


def adoptable(tuning: Tuning) -> bool:
    """Return whether the fastest trial may be faster than the reference, and is not the same."""
    best = tuning.best
    if best is None or best.outcome.speedup is None:
        return False
    return best.outcome.speedup[2] > 1 and str(recipe_of(best.choice)) != tuning.reference


def _adopted(tuning: Tuning, best: Trial) -> Iterator[str]:
    """Yield the marker that has the fastest choice in force, and what to change in the setup."""
    middle, low, high = best.outcome.speedup or (0.0, 0.0, 0.0)
    shown = f"{units.ratio(middle)} {units.interval(low, high)}"
    if not adoptable(tuning):
        yield f"nothing that passed is faster than {tuning.reference}: {best.text} is {shown}"
        return
    if low <= 1:
        yield (
            f"whether {best.text} is faster than {tuning.reference} is open, {shown}: measure "
            "longer, with -- --amp-max-time=60"
        )
    if tuning.min_speedup is not None and low < tuning.min_speedup:
        wanted = units.ratio(tuning.min_speedup)
        yield f"the test's own min_speedup={wanted} is not met for sure: {shown}"
    if best.choice == tuning.usual:
        yield f"the test is the fastest as it is: {best.text}"
        return
    yield f"to adopt {best.text}, mark the test"
    yield f"  {marker(tuning, best)}"
    for name, value in suggested_in(best.choice).items():
        if name in tuning.usual and value != tuning.usual[name]:
            yield f"and offer {value!r} first in arm.suggest({name!r}, ...)"


def marker(tuning: Tuning, best: Trial) -> str:
    """Return a marker with what the test's own markers have and with the fastest choice."""
    given = {name: each.value for name, each in tuning.settings.items() if each.source == "marker"}
    given.pop("dtype", None)
    given["candidate"] = str(recipe_of(best.choice))
    for name in ("init_scale", "growth_interval"):
        in_force = tuning.settings[name]
        elsewhere = in_force.value if in_force.source in ("cli", "ini") else BY_NAME[name].default
        given.pop(name, None)
        if best.choice.get(name, elsewhere) != elsewhere:
            given[name] = best.choice[name]
    return f"@pytest.mark.amp({', '.join(f'{name}={value!r}' for name, value in given.items())})"


def _text(name: str, value: Any) -> str:
    return units.power(value) if name == "init_scale" else str(value)
