"""Write the heading above the table: where and with which flags the tests were measured."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pytest_amp import units
from pytest_amp.render.text import GAP, Line, Span, ascii_only, wrapped
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import RULES, Environment


def heading(
    reports: Sequence[AmpReport], width: int, verbosity: int, hidden: Mapping[str, int]
) -> Iterator[Line]:
    """Yield the lines of the heading.

    Args:
        reports: the reports of the tests.
        width: the width of the terminal.
        verbosity: pytest's; above 0, all flags are shown.
        hidden: by setting of the command line, how many tests' markers hid it.
    """
    for place, dtypes in _places(reports):
        parts = [place.device, *dtypes, *_versions(place), *_flags(place, verbosity)]
        # A part such as "CUDA 12.8" stays on one line, so wrapping must not see its spaces.
        text = ", ".join(ascii_only(part).replace(" ", "\0") for part in parts)
        for line in wrapped(text, width, GAP):
            yield (Span(line.replace("\0", " ")),)
    baselines = {
        str(dataclasses.replace(report.baseline, differences=()))
        for report in reports
        if report.baseline is not None
    }
    if baselines:
        one = ascii_only(next(iter(baselines)))
        runs = one if len(baselines) == 1 else f"one of {len(baselines)} runs; -v names it"
        for line in wrapped(f"since: the speedup's change since {runs}", width, GAP):
            yield (Span(line),)
    left_out = Counter(name for report in reports for name in report.left_out)
    if left_out:
        listed = ", ".join(f"{name} of {units.plural(n, 'test')}" for name, n in left_out.items())
        for line in wrapped(f"--amp-static leaves out: {listed}", width, GAP):
            yield (Span(line),)
    for name, count in hidden.items():
        tests = "1 test keeps its own" if count == 1 else f"{count} tests keep their own"
        yield (Span(f"{tests} {ascii_only(name)}"),)


def _places(reports: Iterable[AmpReport]) -> list[tuple[Environment, list[str]]]:
    """Return each distinct environment once, with the dtypes that ran in it."""
    places: list[tuple[Environment, list[str]]] = []
    for here in (report.environment for report in reports):
        if here is None:
            continue
        dtype = here.dtype if here.native_support else f"{here.dtype} (no native support)"
        place = dataclasses.replace(here, dtype="", native_support=True)
        dtypes = next((known for other, known in places if other == place), None)
        if dtypes is None:
            places.append((place, [dtype]))
        elif dtype not in dtypes:
            dtypes.append(dtype)
    return places


def _versions(place: Environment) -> Iterator[str]:
    unseen = f" (built for {place.unseen}, no GPU visible)" if place.unseen else ""
    yield f"torch {place.torch}{unseen}"
    for name, version in (("CUDA", place.cuda), ("cuDNN", place.cudnn), ("driver", place.driver)):
        if version:
            yield f"{name} {version}"


# The flags that change a measurement most, with the names that people use. -v shows the others.
_TELLING: Mapping[str, str] = {
    RULES: "autocast rules",
    "float32_matmul_precision": "matmul precision",
    "cuda.matmul.allow_tf32": "tf32 matmul",
    "cudnn.allow_tf32": "tf32 cudnn",
    "cudnn.benchmark": "cudnn.benchmark",
    "deterministic_algorithms": "deterministic",
    "num_threads": "threads",
}


def _flags(place: Environment, verbosity: int) -> Iterator[str]:
    if verbosity > 0:
        yield from (f"{name} {_switch(value)}" for name, value in place.flags.items())
        return
    for name, title in _TELLING.items():
        foreign = name.startswith("cu") and place.device_type != "cuda"
        idle = name == "num_threads" and place.device_type != "cpu"
        usual = name == "deterministic_algorithms" and not place.flags.get(name)
        if name in place.flags and not (foreign or idle or usual):
            yield f"{title} {_switch(place.flags[name])}"


def _switch(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
