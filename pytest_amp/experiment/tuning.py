"""Search for the recipe under which a test's step is fastest, among those that are safe.

Each trial runs the test's experiment with another candidate: first the parity run and the rules,
and then, if they pass, the timing in pairs with the reference.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from pytest_amp import units
from pytest_amp.errors import AmpError, unless_our_bug
from pytest_amp.experiment.job import Job
from pytest_amp.experiment.plan import PRECISE_HALF_WIDTH, UNGATED_SHARE_OF_TIME, limits_of
from pytest_amp.experiment.run import judged, laboratory, refuse_several_ranks
from pytest_amp.experiment.search_space import (
    BATCH_SIZE,
    NO,
    YES,
    Choice,
    Space,
    settings_of,
    space_of,
)
from pytest_amp.experiment.study import Outcome, Proposed, Study, Trial, first_line
from pytest_amp.judge import abstain
from pytest_amp.lab.arm import ArmName, Suggest
from pytest_amp.lab.machine.abilities import abilities
from pytest_amp.lab.phases import timing
from pytest_amp.lab.watch.tensors import dtype_name
from pytest_amp.lab.workbench import Workbench
from pytest_amp.observations import Timing
from pytest_amp.progress import Progress
from pytest_amp.recipes import Recipe, Recipes
from pytest_amp.results.explanation import explanation
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import Setting

__tracebackhide__ = unless_our_bug


ARMS: tuple[ArmName, ArmName] = ("amp", "fp32")


@dataclass(frozen=True)
class Wanted:
    """What the user asked for.

    Attributes:
        trials: how many trials the study has in the end, those of earlier runs included.
        timeout_s: after how many seconds no other trial begins; None if there is no limit.
        storage: Optuna's URL, or the path of a journal file; None keeps the study in memory.
        study_name: the study's name; None makes one from the test, the device and the reference.
        only: the texts of the values to try, by the names that are restricted.
    """

    trials: int = 20
    timeout_s: float | None = None
    storage: str | None = None
    study_name: str | None = None
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass
class Tuning:
    """The course of one tuning, which `tune` fills in.

    Attributes:
        study: the study; None until it is opened.
        usual: what the test runs without a tuning.
        reference: the name of the reference's recipe.
        settings: the test's settings, as a report describes them.
        min_speedup: the threshold of the test's speed gate on this device.
    """

    study: Study | None = None
    usual: Choice = field(default_factory=dict)
    reference: str = ""
    settings: Mapping[str, Setting] = field(default_factory=dict)
    min_speedup: float | None = None

    @property
    def trials(self) -> list[Trial]:
        """The study's finished trials, in order."""
        return [] if self.study is None else self.study.trials

    @property
    def best(self) -> Trial | None:
        """The fastest trial that passed; None if none did."""
        return None if self.study is None else self.study.best


class Course:
    """Is told how a tuning goes, and does nothing about it."""

    def begins(self, tuning: Tuning, space: Space, device: str) -> None:
        """Hear what is going to be tried."""

    def trying(self, number: int, choice: Choice) -> None:
        """Hear that a trial begins."""

    def tried(self, tuning: Tuning, trial: Trial) -> None:
        """Hear how a trial came out."""

    def says(self, text: str) -> None:
        """Hear anything else."""


def tune(job: Job, progress: Progress, wanted: Wanted, tuning: Tuning, course: Course) -> None:
    """Search for the fastest choice that passes.

    Args:
        job: the test.
        progress: is told what runs.
        wanted: how long to search, where, and among what.
        tuning: is filled in as the search goes on.
        course: is told how it goes.

    Raises:
        AmpError: Optuna is not installed, the test can't be measured as it is written, or the study
            is of something else.
        Exception: whatever the test's setup raises with the test's own settings.
    """
    began = time.perf_counter()
    refuse_several_ranks()
    search = _Search(job, progress, wanted, tuning, course)
    course.begins(tuning, search.space, job.device.name())
    while len(tuning.trials) < wanted.trials:
        if wanted.timeout_s is not None and time.perf_counter() - began >= wanted.timeout_s:
            course.says(f"no other trial begins after {wanted.timeout_s:g} s")
            break
        proposed = search.study.propose(search.space)
        if proposed is None:
            course.says("nothing is left to try")
            break
        course.trying(proposed.asked.number, proposed.choice)
        course.tried(tuning, search.attempt(proposed))


class _Search:
    """A study, the space that it searches, and the test that it tries."""

    def __init__(
        self, job: Job, progress: Progress, wanted: Wanted, tuning: Tuning, course: Course
    ) -> None:
        self._job, self._progress = job, progress
        self._course, self._only = course, wanted.only
        recipes = job.settings.recipes(dtype_name(job.device.default_dtype()))
        self._usual = _choice_of(recipes.amp, job)
        self.space = space_of(
            abilities(job.device.torch), job.device.type, wanted.only, self._usual["recipe"]
        )
        self._look_at_the_setup()
        self.study = Study(
            wanted.storage, wanted.study_name, self._identity(recipes), job.settings.seed
        )
        for name, values in self.study.offered.items():
            self.space = self.space.offering(name, values)
        self.space.check_only()
        self.study.keep_offers(self.space)
        if self.study.convolves is False and "channels_last" not in self._only:
            self._leave_channels_last_out()
        if not self.study.trials and self.space.has(self._usual):
            self.study.enqueue(self._usual, self.space)
        tuning.study, tuning.usual = self.study, self._usual
        tuning.reference = str(recipes.fp32)
        limits = limits_of(job.settings._replace(static=False), job.device.names())
        tuning.min_speedup = limits.min_speedup
        tuning.settings = job.settings.described()

    def _look_at_the_setup(self) -> None:
        """Run one step by each recipe, to learn what the setup offers there.

        Raises:
            Exception: whatever the test's setup raises with its own recipe.
        """
        own = self._usual["recipe"]
        for recipe in dict.fromkeys((own, *self.space.wanted("recipe"))):

            def suggest(name: str, values: Sequence[Any], recipe: str = recipe) -> Any:
                self.space = self.space.offering(name, values, recipe)
                if recipe == own:
                    self._usual.setdefault(name, values[0])
                return values[0]

            self.space = replace(self.space, asked={**self.space.asked, recipe: frozenset()})
            choice = self._usual if recipe == own else next(self.space.choices_of(recipe))
            settings = settings_of(choice, self._job.settings)
            job = replace(self._job, settings=settings, suggest=suggest)
            built = False
            try:
                with laboratory(job, self._progress) as bench:
                    for arm in ARMS:
                        with bench.built(arm) as resident, resident.active():
                            built = True
                            resident.step()
            except Exception as error:  # another recipe's, or one that a trial will tell of
                if recipe == own and (not built or isinstance(error, AmpError)):
                    raise

    def _identity(self, recipes: Recipes) -> dict[str, str]:
        return {
            "test": self._job.nodeid,
            "device": self._job.device.name(),
            "reference": str(recipes.fp32),
            "torch": torch.__version__,
        }

    def _leave_channels_last_out(self) -> None:
        self.space = replace(self.space, values={**self.space.values, "channels_last": (NO,)})

    def attempt(self, proposed: Proposed) -> Trial:
        """Run one trial, and tell the study how it came out."""
        began = time.perf_counter()
        settings = settings_of(proposed.choice, self._job.settings)
        job = replace(self._job, settings=settings, suggest=self._suggesting(proposed))
        try:
            outcome = self._measured(job, proposed.choice)
        except AmpError as error:
            if not self.study.trials:  # about the test, whatever is tried
                self.study.drop(proposed, str(error))
                raise
            outcome = Outcome("error", f"AmpError: {first_line(error)}")
        except Exception as error:  # noqa: BLE001 - what this choice leads to, another may not
            outcome = Outcome("error", f"{type(error).__name__}: {first_line(error)}")
        except BaseException:
            self.study.drop(proposed, "interrupted")
            raise
        seconds = time.perf_counter() - began
        return self.study.finish(proposed, outcome._replace(seconds=seconds))

    def _suggesting(self, proposed: Proposed) -> Suggest:
        def suggest(name: str, values: Sequence[Any]) -> Any:
            self.space = self.space.offering(name, values, proposed.choice["recipe"])
            self.study.keep_offers(self.space)
            return self.study.draw(proposed, name, self.space)

        return suggest

    def _measured(self, job: Job, choice: Choice) -> Outcome:
        with laboratory(job, self._progress) as bench:
            report = judged(bench, replace(job, settings=job.settings._replace(static=True)))
            self._look_for_convolutions(report)
            if report.verdict != "pass":
                return Outcome(report.verdict, next(explanation(report)))
            if bench.untimed is not None:
                return Outcome("inconclusive", bench.untimed)
            return self._timed(bench, job, choice, _attempts_per_step(report) / _examples(choice))

    def _timed(self, bench: Workbench, job: Job, choice: Choice, share: float) -> Outcome:
        """Time the candidate against the reference until it is known well, or can't be the best.

        Args:
            bench: where.
            job: the test with this choice.
            choice: what is tried.
            share: by what to multiply a step's time.
        """
        best, known = self.study.best, self.study.reference_s(choice)
        rate = job.settings.error_rate

        def least_s(timed: Timing) -> float | None:
            """Return the shortest time that the pairs so far leave possible."""
            bounds = abstain.interval(timed.ratios, rate)
            if bounds is None:
                return None
            return share * (known or statistics.median(timed.fp32_step_s)) / bounds[1]

        def stop(timed: Timing) -> str | None:
            least = least_s(timed)
            if least is not None and best is not None and least > best.step_s:
                return "pruned"
            bounds = abstain.interval(timed.ratios, rate)
            if bounds and bounds[1] - bounds[0] <= 2 * PRECISE_HALF_WIDTH * bounds[0]:
                return "precise"
            over = timed.elapsed_s >= job.settings.max_time * UNGATED_SHARE_OF_TIME
            return "budget" if over else None

        timed = timing.run(bench, timing.Plan(job.settings.warmup, stop))
        bounds, least = abstain.interval(timed.ratios, rate), least_s(timed)
        if bounds is None or least is None:
            why = f"max_time={job.settings.max_time:g} s is too short"
            if timed.skipping_pairs > len(timed.ratios):
                pairs_left_out = units.plural(timed.skipping_pairs, "pair")
                why = f"the GradScaler skipped steps in {pairs_left_out} of blocks"
            return Outcome("inconclusive", why)
        middle, reference_s = statistics.median(timed.ratios), statistics.median(timed.fp32_step_s)
        outcome = Outcome(
            "pass", "", share * (known or reference_s) / middle, (middle, *bounds),
            pairs=len(timed.ratios), reference_s=reference_s,
        )  # fmt: skip
        if timed.stopped != "pruned" or best is None:
            return outcome
        why = f"slower than trial {best.number}, as {len(timed.ratios)} pairs show"
        return outcome._replace(verdict="pruned", why=why, step_s=least)

    def _look_for_convolutions(self, report: AmpReport) -> None:
        """Do not try channels_last where no convolution runs."""
        free = "channels_last" not in self._only and set(self.space.suggested) <= {BATCH_SIZE}
        if free and self.study.convolves is None and "amp" in report.arms:
            operators = report.arms["amp"].operators
            self.study.convolves = any("conv" in name for name in operators)
            if not self.study.convolves:
                self._leave_channels_last_out()
                self._course.says("  no convolution runs, so channels_last is not tried")


def _choice_of(recipe: Recipe, job: Job) -> dict[str, Any]:
    """Return the choice that a test's own recipe and settings are."""
    base = replace(recipe, matmul="float32", compile=None, memory_format="contiguous")
    found: dict[str, Any] = {
        "recipe": str(base),
        "compile": recipe.compile or NO,
        "channels_last": YES if recipe.memory_format == "channels_last" else NO,
        "tf32": YES if recipe.matmul == "tf32" else NO,
    }
    if recipe.autocast_dtype == "float16":
        found["init_scale"] = job.settings.init_scale
        found["growth_interval"] = job.settings.growth_interval
    return found


def _attempts_per_step(report: AmpReport) -> float:
    """Return how many steps had to be run for each that was applied: a GradScaler skips some."""
    run = report.arms["amp"]
    steps, skipped = len(run.losses), run.skipped_steps or 0
    return steps / max(steps - skipped, 1) if steps else 1.0


def _examples(choice: Choice) -> float:
    """Return the batch size that was suggested; 1 if none was."""
    return float(choice.get(BATCH_SIZE, 1))
