"""Print per rule the faulty steps that it found, and the healthy ones that it spoke of."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence

from pytest_amp.codes import CODES
from tests.catalogue.registry import Step, load
from tests.helpers.lab import codes

# Of one step: whether its rule found a fault, or any rule spoke of a healthy twin.
Spoken = Callable[[Step], "bool | None"]


def measured(step: Step) -> bool | None:
    """None where its device is not there."""
    if not step.runs_here:
        return None
    found = set(codes(step.measured()))
    return step.code in found if step.faulty else bool(found - set(step.may_warn))


def table(spoken: Spoken) -> Iterator[str]:
    """The table's lines, as they become known."""
    steps = load()
    yield f"{'rule':<42} {'found / faulty':>15} {'findings / healthy':>20}"
    totals: list[list[bool | None]] = [[], []]
    for code, (name, *_) in CODES.items():
        answers = [
            [spoken(step) for step in steps if step.code == code and step.faulty is faulty]
            for faulty in (True, False)
        ]
        if any(answers):
            for total, answer in zip(totals, answers, strict=True):
                total.extend(answer)
            yield _row(f"{code} {name}", answers)
    yield _row("all", totals)


def _row(name: str, answers: Sequence[Sequence[bool | None]]) -> str:
    run = [[answer for answer in each if answer is not None] for each in answers]
    figures = [f"{sum(each)} / {len(each)}" for each in run]
    elsewhere = sum(map(len, answers)) - sum(map(len, run))
    row = f"{name:<42} {figures[0]:>15} {figures[1]:>20}"
    return f"{row}   {elsewhere} not run" if elsewhere else row


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable()
    for line in table(measured):
        print(line, flush=True)


if __name__ == "__main__":
    main()
