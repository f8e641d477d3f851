"""``pytest-amp bisect``: which modules have to stay in float32 for a test's losses to hold."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_amp import units
from pytest_amp.errors import AmpError
from pytest_amp.plugin import collection, fixtures

if TYPE_CHECKING:
    from pytest_amp.experiment.job import Job
    from pytest_amp.experiment.minimal_set import Bisection
    from pytest_amp.progress import Progress
    from pytest_amp.results.values import AmpReport

Say = Callable[[str], object]
FOUND, NO_HELP, USAGE = 0, 1, 2


@dataclass(frozen=True)
class Place:
    """A module: its class, where its forward is written, and the user's line that calls it."""

    path: str
    kind: str
    written: str
    called: str | None
    is_torchs: bool
    takes: tuple[str, ...] = ("x",)


@dataclass
class Search:
    """One bisection, as it went. `differences`: the loss difference with each set kept."""

    device_type: str = "cpu"
    dtype: str = ""
    threshold: float = 0.0
    places: dict[str, Place] = field(default_factory=dict)
    differences: dict[frozenset[str], float | None] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    found: Bisection | None = None


def main(nodeid: str, more: Sequence[str], say: Say) -> int:
    """Run that one test under pytest, bisect it, and say what was found. The exit code."""
    hook = _Hook(say)
    written = io.StringIO()
    arguments = [nodeid, "-s", "-p", "no:cacheprovider", "--amp-static", *more]
    if importlib.util.find_spec("xdist"):
        arguments += ["-n", "0"]
    with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
        pytest.main(arguments, plugins=[hook])
    if hook.error is not None:
        say(f"pytest-amp bisect: {hook.error}")
        return USAGE
    if hook.search is None or hook.search.found is None:
        say(written.getvalue().rstrip())
        what = "did not run as one amp test" if hook.search is None else "ended in an error"
        say(f"pytest-amp bisect: {nodeid} {what}; see above")
        return USAGE
    for line in conclusion(hook.search):
        say(line)
    return NO_HELP if hook.search.found.names is None else FOUND


class _Bisected(Exception):
    """Ends the test once it is bisected: there is no report for it to go on with."""


class _Hook:
    """Takes the place of the experiment in this one run of pytest."""

    def __init__(self, say: Say) -> None:
        self.search: Search | None = None
        self.error: AmpError | None = None
        self._say = say

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[fixtures.RUNNER] = self._run

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        found = [item for item in session.items if collection.is_amp(item)]
        if len(found) > 1:
            names = ", ".join(item.nodeid for item in found[:3])
            more = ", ..." if len(found) > 3 else ""
            self.error = AmpError(
                f"that is {len(found)} amp tests ({names}{more}); bisect one of them"
            )
            session.items.clear()

    def _run(self, job: Job, progress: Progress) -> AmpReport:
        if self.search is not None:
            raise _Bisected
        self.search = Search()
        try:
            bisect(job, progress, self.search, self._say)
        except AmpError as error:
            self.error = error
            raise
        raise _Bisected


def bisect(job: Job, progress: Progress, search: Search, say: Say) -> None:
    """Fill `search`. AmpError where the test has no parity gate to pass."""
    from pytest_amp.experiment import minimal_set
    from pytest_amp.experiment.bisection import Trials

    began = time.perf_counter()
    with Trials(job, progress) as trials:
        wanted = trials.limits.max_loss_diff
        if wanted is None:
            raise AmpError("max_loss_diff is off for this test: there is no parity gate to pass")
        search.device_type, search.dtype = trials.device_type, trials.dtype
        search.threshold = wanted
        search.places = {
            each.call.path: _place(each.call.module, each.call.path, each.location)
            for each in trials.modules()
        }
        names = list(search.places)
        say(f"bisecting {job.nodeid} on {trials.device_type} in {trials.dtype}")
        say(f"  {units.plural(len(names), 'module')}, max_loss_diff {units.share(wanted)}")

        def passes(kept: frozenset[str]) -> bool:
            gate = trials.loss_gate(kept)
            search.differences[kept] = gate.value
            found = "not finite" if gate.value is None else units.share(gate.value)
            held = "nothing" if not kept else units.plural(len(kept), "module")
            number = len(search.differences)
            say(f"  trial {number:>2}  {held + ' in float32':<24} {found:>10}  {gate.verdict}")
            return gate.verdict == "pass"

        search.found = minimal_set.smallest(names, passes)
        search.steps = trials.steps
    search.seconds = time.perf_counter() - began


def conclusion(search: Search) -> list[str]:
    """What was found, what it cost, and the lines that fix it."""
    assert search.found is not None
    names = search.found.names
    cost = (
        f"{units.plural(search.found.trials, 'trial')}, {units.plural(search.steps, 'step')}, "
        f"{units.duration(search.seconds)}"
    )
    if names is None:
        why = "what differs is outside of any module, or no matter of precision"
        return [f"not even all modules in float32 make the losses agree ({cost}): {why}"]
    if not names:
        return [f"nothing to do: the losses agree as it is ({cost})"]
    before = search.differences.get(frozenset())
    after = search.differences.get(frozenset(names))
    change = f"loss_diff goes from {_difference(before)} to {_difference(after)}"
    lines = [f"found in {cost}: with {_these(names)} in float32, {change}"]
    for name in names:
        place = search.places[name]
        lines += ["", f"  {name}  ({place.kind}, {place.written})", *_fix(place, search)]
    return lines


def _fix(place: Place, search: Search) -> list[str]:
    """In the module's own forward where it is the user's, around the call where it is torch's."""
    region = f'with torch.autocast("{search.device_type}", enabled=False):'
    if place.is_torchs:
        attribute = place.path.rpartition(".")[2]
        where = f"where it is called, {place.called}" if place.called else "where it is called"
        call = f"self.{attribute}(x.float())" if attribute.isidentifier() else "module(x.float())"
        return [f"    {where}:", f"      {region}", f"          y = {call}"]
    takes = ", ".join(place.takes)
    wide = ", ".join(f"{name}.float()" for name in place.takes)
    several = "  # those that are tensors of floats" if len(place.takes) > 1 else ""
    return [
        f"    in its forward(self, {takes}):",
        f"      {takes} = {wide}{several}",
        f"      {region}",
        "          ...  # all that is there now",
    ]


def _place(module: Any, path: str, called: str | None) -> Place:
    kind = type(module)
    package = kind.__module__.partition(".")[0]
    try:
        file, line = inspect.getsourcefile(kind.forward), inspect.getsourcelines(kind.forward)[1]
    except (OSError, TypeError):
        file, line = None, 0
    written = f"{_short(file)}:{line}" if file else kind.__module__
    return Place(path, kind.__name__, written, called, package == "torch", _takes(kind.forward))


def _takes(forward: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the arguments that a call has to give."""
    try:
        given = list(inspect.signature(forward).parameters.values())[1:]
    except (TypeError, ValueError):
        given = []
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [each.name for each in given if each.kind in plain and each.default is each.empty]
    return tuple(names) or ("x",)


def _short(file: str) -> str:
    with contextlib.suppress(ValueError):
        return Path(file).relative_to(Path.cwd()).as_posix()
    parts = Path(file).parts
    if "site-packages" in parts:
        return "/".join(parts[parts.index("site-packages") + 1 :])
    return file


def _these(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"these {len(names)} modules"


def _difference(value: float | None) -> str:
    return "not finite" if value is None or value != value else units.share(value)
