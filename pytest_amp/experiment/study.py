"""Keep the trials of a tuning in a study of Optuna's, which proposes, stores and resumes."""

from __future__ import annotations

import json
import logging
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_amp import extras
from pytest_amp.errors import AmpError, unless_our_bug
from pytest_amp.experiment.search_space import Choice, Space, described, suggested_in

if TYPE_CHECKING:
    import optuna

__tracebackhide__ = unless_our_bug

# So often in a row may the sampler propose what was tried before one is drawn from the rest.
_PATIENCE = 3
_OFFERED = "offered:"


class Outcome(NamedTuple):
    """How a trial came out.

    Attributes:
        verdict: ``pass``, ``fail``, ``inconclusive``, ``error``, or ``pruned`` if it was too slow
            to be timed to the end.
        why: what stood in its way; "" if it passed.
        step_s: seconds per step that is applied, or per example where the batch size was tried
            too; for a pruned trial, the least that it can be; None if it was not timed.
        speedup: the reference's step time by the candidate's, with the bounds of its interval; None
            if it was not timed.
        pairs: how many pairs of blocks were timed.
        reference_s: the reference's seconds per step; None if it was not timed.
        seconds: how long the trial took.
    """

    verdict: str
    why: str = ""
    step_s: float | None = None
    speedup: Sequence[float] | None = None
    pairs: int = 0
    reference_s: float | None = None
    seconds: float = 0.0


class Trial(NamedTuple):
    """A finished trial: its number in the study, what was tried, and how that came out."""

    number: int
    choice: Choice
    outcome: Outcome

    @property
    def text(self) -> str:
        """What was tried, on one line."""
        return described(self.choice)

    @property
    def step_s(self) -> float:
        """The time of a trial that passed, in seconds per step or per example."""
        assert self.outcome.step_s is not None
        return self.outcome.step_s


class Proposed(NamedTuple):
    """A trial that begins: Optuna's, and what is to be tried."""

    asked: optuna.Trial
    choice: dict[str, Any]


class Study:
    """A study of Optuna's, which may be an earlier run's, and may be worked on by others too.

    Args:
        storage: Optuna's URL, or the path of a journal file; None keeps the study in memory.
        name: its name; None makes one from the identity.
        identity: what all of its trials share, by what that is.
        seed: of the sampler.

    Raises:
        AmpError: Optuna is not installed, the storage can't be opened, or the study is of something
            else.
    """

    def __init__(
        self, storage: str | None, name: str | None, identity: Mapping[str, str], seed: int
    ) -> None:
        self._optuna = _imported()
        name = name or ", ".join(identity.values())
        try:
            self.optunas: optuna.Study = self._optuna.create_study(
                storage=self._opened(storage),
                study_name=name,
                direction="minimize",
                load_if_exists=True,
            )
        except Exception as error:
            raise AmpError(
                f"--storage {storage}: {type(error).__name__}: {first_line(error)}; give a file "
                "for Optuna's journal, or a URL such as sqlite:///tune.db"
            ) from error
        stored = self.optunas.user_attrs
        for key, value in identity.items():
            if stored.get(key, value) != value:
                raise AmpError(
                    f"the study {name!r} is of another {key}: {stored[key]}, not {value}; begin "
                    "another study with --study-name"
                )
            self.optunas.set_user_attr(key, value)
        seed += len(self.optunas.trials)  # one that goes on must not begin as it did
        self.optunas.sampler = self._optuna.samplers.TPESampler(seed=seed)
        self._random = random.Random(seed)

    def _opened(self, storage: str | None) -> Any:
        if storage is None or "://" in storage:
            return storage
        journal = self._optuna.storages.journal
        return self._optuna.storages.JournalStorage(journal.JournalFileBackend(storage))

    @property
    def trials(self) -> list[Trial]:
        """The finished trials, in order."""
        found = []
        for each in self.optunas.get_trials(deepcopy=False):
            kept = each.user_attrs.get("trial")
            if kept is not None and each.state.is_finished():
                choice, outcome = json.loads(kept)
                found.append(Trial(each.number, choice, Outcome(**outcome)))
        return found

    @property
    def best(self) -> Trial | None:
        """The fastest trial that passed; None if none did."""
        passed = [trial for trial in self.trials if trial.outcome.verdict == "pass"]
        return min(passed, key=lambda trial: trial.step_s, default=None)

    @property
    def convolves(self) -> bool | None:
        """Whether convolutions run in the step; None if no trial has told that yet."""
        found: bool | None = self.optunas.user_attrs.get("convolves")
        return found

    @convolves.setter
    def convolves(self, value: bool) -> None:
        self.optunas.set_user_attr("convolves", value)

    @property
    def offered(self) -> dict[str, Sequence[Any]]:
        """The values that the setup offered in earlier trials, by name."""
        return {
            key.removeprefix(_OFFERED): tuple(values)
            for key, values in self.optunas.user_attrs.items()
            if key.startswith(_OFFERED)
        }

    def keep_offers(self, space: Space) -> None:
        """Keep what the setup offers, all of it."""
        known = self.offered
        for name, values in space.suggested.items():
            if known.get(name) != tuple(values):
                self.optunas.set_user_attr(_OFFERED + name, list(values))

    def reference_s(self, choice: Choice) -> float | None:
        """Return the reference's step time with the same suggested values, as first measured.

        Trials are compared by their speedup over it, so that a machine that is slower for a while
        favours none of them.
        """
        wanted = suggested_in(choice)
        for each in self.trials:
            if each.outcome.reference_s is not None and suggested_in(each.choice) == wanted:
                return each.outcome.reference_s
        return None

    def enqueue(self, choice: Choice, space: Space) -> None:
        """Let the next trial try this."""
        drawn = {name: value for name, value in choice.items() if len(space.wanted(name)) > 1}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # this is experimental in some versions
            self.optunas.enqueue_trial(drawn)

    def propose(self, space: Space) -> Proposed | None:
        """Begin a trial of what was not tried yet; return None if all was.

        Raises:
            AmpError: the study was begun with other values.
        """
        tried = [trial.choice for trial in self.trials]
        for _ in range(_PATIENCE):
            proposed = self._asked(space)
            if proposed.choice not in tried:
                return proposed
            self.drop(proposed, "tried before")
        untried = [choice for choice in space.choices() if choice not in tried]
        if not untried:
            return None
        self.enqueue(self._random.choice(untried), space)
        return self._asked(space)

    def _asked(self, space: Space) -> Proposed:
        proposed = Proposed(self.optunas.ask(), {})
        try:
            self.draw(proposed, "recipe", space)
            for name in space.names_for(proposed.choice["recipe"]):
                self.draw(proposed, name, space)
        except AmpError as error:
            self.drop(proposed, str(error))
            raise
        return proposed

    def draw(self, proposed: Proposed, name: str, space: Space) -> Any:
        """Choose a value for this name, unless it is chosen already, and return it.

        Raises:
            AmpError: the study was begun with other values.
        """
        if name in proposed.choice:
            return proposed.choice[name]
        values = space.wanted(name)
        try:
            value = (
                values[0] if len(values) == 1 else proposed.asked.suggest_categorical(name, values)
            )
        except ValueError as error:
            raise AmpError(
                f"the study was begun with other values for {name} than "
                f"{', '.join(map(str, values))}: give the same --only as then, or begin another "
                "study with --study-name"
            ) from error
        proposed.choice[name] = value
        return value

    def drop(self, proposed: Proposed, why: str) -> None:
        """End a trial that tells nothing."""
        proposed.asked.set_user_attr("dropped", why)
        self.optunas.tell(proposed.asked, state=self._optuna.trial.TrialState.FAIL)

    def finish(self, proposed: Proposed, outcome: Outcome) -> Trial:
        """End a trial, keep how it came out, and return it.

        To Optuna, those that did not pass are pruned, so that it looks elsewhere.
        """
        kept = json.dumps([proposed.choice, outcome._asdict()])
        proposed.asked.set_user_attr("trial", kept)
        states = self._optuna.trial.TrialState
        if outcome.verdict == "pass":
            self.optunas.tell(proposed.asked, outcome.step_s, states.COMPLETE)
        else:
            if outcome.step_s is not None:
                proposed.asked.report(outcome.step_s, outcome.pairs)
            self.optunas.tell(proposed.asked, state=states.PRUNED)
        choice, plain = json.loads(kept)
        return Trial(proposed.asked.number, choice, Outcome(**plain))


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message."""
    return (str(error).strip() or "no message").splitlines()[0]


def _imported() -> Any:
    if missing := extras.missing("tune", "tune needs", "optuna"):
        raise AmpError(missing)
    import optuna

    optuna.logging.set_verbosity(logging.WARNING)
    return optuna
