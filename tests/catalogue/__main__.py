"""Print per rule the faulty steps that it found, and the healthy ones that it spoke of."""

from __future__ import annotations

import warnings

from pytest_amp.codes import CODES
from tests.catalogue.registry import load
from tests.laboratory import codes


def main() -> None:
    warnings.simplefilter("ignore")
    steps = load()
    print(f"{'rule':<42} {'found / faulty':>15} {'findings / healthy':>20}")
    false_findings = 0
    for code, (name, *_) in CODES.items():
        mine = [step for step in steps if step.code == code]
        if not mine:
            continue
        faulty = [code in codes(step.measured()) for step in mine if step.faulty]
        spoken = [
            bool(set(codes(step.measured())) - set(step.may_warn))
            for step in mine
            if not step.faulty
        ]
        false_findings += sum(spoken)
        print(
            f"{code + ' ' + name:<42} {f'{sum(faulty)} / {len(faulty)}':>15} "
            f"{f'{sum(spoken)} / {len(spoken)}':>20}"
        )
    print(f"false findings on healthy twins: {false_findings}")


if __name__ == "__main__":
    main()
