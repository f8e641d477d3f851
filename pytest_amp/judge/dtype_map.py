"""Gate the dtype map: compare the inspected step's operators with the stored map.

A map has to be the same on every machine with the same kind of device. Therefore kernels among
which torch chooses by build, shape or version share one name, and operators that only move memory
are left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pytest_amp import units
from pytest_amp.judge.dtype_map_text import (
    OUTSIDE,
    Line,
    Lines,
    Section,
    Title,
    diff,
    escaped,
    escaped_path,
    folded,
    written,
)
from pytest_amp.observations import Observations, Operators, OpRow
from pytest_amp.results.values import DtypeMap, Gate, GateVerdict

GATE = "compare:dtype_map"

_FAMILIES = {
    "matmul": re.compile(
        r"mm|bmm|mv|addmm|addbmm|baddbmm|addmv|addr|_addmm_activation|v?dot|matmul"
        r"|(mkldnn_)?linear(_backward.*)?"
    ),
    "convolution": re.compile(r".*conv(olution|_|\d).*"),
    "attention": re.compile(r".*attention.*"),
    "rnn": re.compile(r"(mkldnn|miopen|_cudnn)_rnn.*"),
    "batch_norm": re.compile(r"(_?native_|cudnn_|miopen_|_)?batch_norm.*"),
    "layer_norm": re.compile(r"(native_)?layer_norm.*"),
    "rms_norm": re.compile(r"(_fused_)?rms_norm.*"),
}
# Operators that allocate, fill, copy or view memory, as a kernel's layout requires, and those with
# which optimizers, scalers and clipping work on all parameters at once.
_NO_ARITHMETIC = re.compile(
    r"_?(empty|zeros|ones|full|new|eye|lift)(_.*)?|(zero|fill|copy|resize|set|detach)_?"
    r"|clone|contiguous|_unsafe_view|_reshape_copy|_to_copy|scalar_tensor|_?pin_memory"
    r"|(select|slice|diagonal|unfold|as_strided)_(backward|scatter)"
    r"|_(foreach|amp)_.*|_fused_(ada|sgd).*"
)


@dataclass(frozen=True)
class StoredMap:
    """The stored maps of a test's file.

    Attributes:
        file: the file's name, for messages.
        test: the test's name in the file.
        update: whether to write the map anew instead of comparing it.
        sections: the stored maps.
    """

    file: str
    test: str
    update: bool
    sections: Mapping[Title, Section]


def judge(snapshot: StoredMap, seen: Observations) -> tuple[DtypeMap, Gate]:
    """Compare this run's map with the stored one; a map that is written anew passes."""
    title = Title(snapshot.test, seen.rules_of, seen.dtype)
    now, stored = lines_of(seen.amp.operators), snapshot.sections.get(title)
    changes = () if stored is None else tuple(diff(stored.lines, now))
    verdict: GateVerdict = "fail"
    if stored is None and snapshot.update:
        verdict, reason = "pass", f"written to {snapshot.file}"
    elif stored is None:
        reason = _missing(snapshot, title)
    elif not changes:
        verdict, reason = "pass", f"as stored in {snapshot.file}"
    elif snapshot.update:
        verdict, reason = "pass", f"{snapshot.file} is updated: {_change(stored.lines, now)}"
    else:
        reason = _change(stored.lines, now)
    found = DtypeMap(snapshot.file, snapshot.test, tuple(written(now)), stored is not None, changes)
    changed = None if stored is None else float(len(changes))
    return found, Gate(GATE, None, changed, None, None, verdict, reason)


def _missing(snapshot: StoredMap, title: Title) -> str:
    test, device_type, dtype = title
    others = sorted(f"{t.device_type} in {t.dtype}" for t in snapshot.sections if t.test == test)
    has = f" (there is one for {', '.join(others)})" if others else ""
    return (
        f"{snapshot.file} has no map of this test on {device_type} in {dtype}{has}: "
        "create it with --amp-snapshot=update, and commit it"
    )


def lines_of(operators: Operators | None) -> Lines:
    """Return the map of one inspected step, without the optimizers' updates."""
    if operators is None:
        return frozenset({_unseen("the whole step")})
    counts: Counter[tuple[str, str, str, str]] = Counter()
    composites: dict[tuple[str, str, str], dict[int, str]] = {}
    for row, op, dtype in _mapped(operators):
        module = OUTSIDE if row.module is None else escaped_path(row.module)
        if row.composite is None:
            counts[module, row.phase, op, dtype] += row.count
        elif not row.is_cast:
            composites.setdefault((module, row.phase, row.composite), {}).update(row.part_of)
    for (module, phase, kind), calls in composites.items():
        for returned in calls.values():
            counts[module, phase, kind, returned] += 1
    unseen = [*operators.hidden, *(f"FLOPs of {name}" for name in operators.unknown)]
    return frozenset([*(Line(*key, n) for key, n in counts.items()), *map(_unseen, unseen)])


def calls(operators: Operators | None) -> dict[str, dict[str, int]]:
    """Count the calls in one inspected step, by operator and then dtype, in the order they ran."""
    found: dict[str, dict[str, int]] = {}
    for row, op, dtype in _mapped(operators) if operators else ():
        counts = found.setdefault(op, {})
        counts[dtype] = counts.get(dtype, 0) + row.count
    return found


def _mapped(operators: Operators) -> Iterator[tuple[OpRow, str, str]]:
    """Yield the rows that belong in a map, with their operator's and dtype's names there."""
    for row in operators.rows:
        op = _op(row)
        if op is not None and row.out is not None and row.phase != "update":
            yield row, op, row.dtype if row.dtype == row.out else f"{row.dtype} -> {row.out}"


def _unseen(what: str) -> Line:
    return Line(OUTSIDE, "unseen", escaped(" ".join(what.split())), "-", 1)


def _op(row: OpRow) -> str | None:
    """Return the operator's name in the map; None if it computes nothing."""
    if row.is_cast:
        return "cast"
    name = row.op.removeprefix("aten::")
    in_place = name.endswith("_")
    if _NO_ARITHMETIC.fullmatch(name) or not (row.bytes or in_place):  # no bytes: a view
        return None
    return next(
        (family for family, kind in _FAMILIES.items() if "::" not in name and kind.fullmatch(name)),
        name.removesuffix("_"),
    )


def _change(stored: Lines, now: Lines) -> str:
    """Describe the most telling change: a dtype before a count, and casts after everything else."""
    before, after = _by_operator(stored - now), _by_operator(now - stored)
    (_, first), *more = sorted(
        (_in_words(key, before.get(key, []), after.get(key, [])) for key in {**before, **after}),
        key=lambda each: each[0],
    )
    return f"{first} (and {units.plural(len(more), 'more change')})" if more else first


Key = tuple[str, str, str]


def _by_operator(lines: Lines) -> dict[Key, list[Line]]:
    by_operator: dict[Key, list[Line]] = {}
    for line in folded(lines):
        by_operator.setdefault((line.module, line.phase, line.op), []).append(line)
    return by_operator


def _in_words(key: Key, before: list[Line], after: list[Line]) -> tuple[int, str]:
    """Return how telling an operator's change is (0 is the most), and the change in words."""
    module, phase, op = key
    if phase == "unseen":
        return 0, f"{op} {'is seen again' if before else 'was not seen'}"
    where = "outside of modules" if module == OUTSIDE else f"in {module}"
    what = f"{op} {where}" + ("" if phase == "forward" else f" ({phase})")
    was, runs = _dtypes(before), _dtypes(after)
    late = 4 if op == "cast" else 0
    if not before or not after:
        return 2 + late, f"{what} is {f'new, in {runs}' if after else f'gone, which ran in {was}'}"
    if was != runs:
        return late + (op not in _FAMILIES), f"{what} ran in {runs}, where {was} is stored"
    return 3 + late, f"{what} has {_calls(after)}, where {_calls(before)} are stored"


def _dtypes(lines: list[Line]) -> str:
    return " and ".join(line.dtype for line in lines)


def _calls(lines: list[Line]) -> str:
    return " and ".join(units.plural(line.calls, "call") for line in lines)
