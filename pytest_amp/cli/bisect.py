"""``pytest-amp bisect``: find the lines and modules that a test's losses need in float32."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_amp import units
from pytest_amp.cli import one_test
from pytest_amp.experiment.bisection import Say, Search, bisect
from pytest_amp.experiment.candidates import Candidate, Line, Module

FOUND, NO_HELP, USAGE = 0, 1, 2


def main(nodeid: str, more: Sequence[str], say: Say) -> int:
    """Run one test under pytest, bisect it and say what was found. Return the exit code.

    Args:
        nodeid: the test.
        more: further arguments for pytest.
        say: prints a line.
    """
    search = Search()
    ended = one_test.run(
        "bisect",
        nodeid,
        ["--amp-static", *more],
        lambda job, progress, say: bisect(job, progress, search, say),
        say,
    )
    if not ended.well:
        return USAGE
    for line in conclusion(search):
        say(line)
    assert search.found is not None
    return NO_HELP if search.found.names is None else FOUND


def conclusion(search: Search) -> list[str]:
    """Say what was found, what it cost, and which lines of code fix it."""
    assert search.found is not None
    names = search.found.names
    cost = (
        f"{units.plural(search.found.trials, 'trial')}, {units.plural(search.steps, 'step')}, "
        f"{units.duration(search.seconds)}"
    )
    if names is None:
        why = "what differs is not due to the precision of the forward pass"
        return [f"not even all lines and modules in float32 make the losses agree ({cost}): {why}"]
    if not names:
        return [f"nothing to do: the losses agree as it is ({cost})"]
    before = search.differences.get(frozenset())
    after = search.differences.get(frozenset(names))
    change = f"loss_diff goes from {_difference(before)} to {_difference(after)}"
    lines = [f"found in {cost}: with {_these(names)} in float32, {change}"]
    for name in names:
        lines += ["", *_shown(search.candidates[name], search.device_type)]
    return lines


def _shown(found: Candidate, device_type: str) -> list[str]:
    """Show a culprit, and the code that keeps it in float32."""
    region = f'with torch.autocast("{device_type}", enabled=False):'
    if isinstance(found, Line):
        return [
            f"  {found.location}  ({_brief(found.ops)})",
            "    this line, with .float() on each half tensor that it takes:",
            f"      {region}",
            f"          {found.source or '...'}",
        ]
    return [f"  {found.path}  ({found.kind}, {found.written})", *_fix(found, region)]


def _brief(ops: Sequence[str]) -> str:
    """Return the first operators' names, without those that only convert or view."""
    named = [op.removeprefix("aten::") for op in ops if op != "aten::_to_copy"] or [*ops]
    return ", ".join(named[:4]) + ", ..." * (len(named) > 4)


def _fix(place: Module, region: str) -> list[str]:
    """Show the fix: in the module's own forward, or around its call if the module is torch's."""
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


def _these(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"these {len(names)}"


def _difference(value: float | None) -> str:
    return "not finite" if value is None or value != value else units.share(value)
