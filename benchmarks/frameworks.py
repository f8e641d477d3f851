"""What a step of five frameworks comes to in both dtypes, and whether a fault in it is found.

The steps are those of the tests. In each fault, gradients are clipped while they are still scaled.
Wanted: no finding in a healthy step, AMP203 at the line that clips in a faulty one, nothing left of
the framework in the process.
"""

import argparse
import logging
import warnings
from pathlib import Path

import torch

from pytest_amp import measure, units
from tests.integrations.test_frameworks import DTYPES, FRAMEWORKS, state


def told(report):
    return ", ".join(
        f"{finding.code} {Path(finding.location).name if finding.location else ''}".strip()
        for finding in report.findings
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-time", type=float, default=9.0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()  # Lightning tells at each trainer what there is
    print(f"torch {torch.__version__}, on a CPU, against fp32")
    print(f"{'framework':<12}{'dtype':<10}{'step':>9}{'speedup':>22}{'memory':>8}{'loss':>9}"
          f"{'coverage':>10}{'scales':>8}  findings")  # fmt: skip
    for name, build in FRAMEWORKS.items():
        for dtype in DTYPES:
            report = measure(
                build(faulty=False), device="cpu", dtype=dtype, max_time=arguments.max_time
            )
            print(
                f"{name:<12}{dtype:<10}{units.duration(report.amp.step_time_s):>9}"
                f"{report.speedup or units.NOTHING!s:>22}{units.share(report.memory_reduction):>8}"
                f"{units.share(report.loss_diff):>9}{units.share(report.coverage):>10}"
                f"{len(report.amp.scales):>8}  {told(report) or 'none'}"
            )
        faulty = measure(build(faulty=True), device="cpu", dtype="float16", static=True)
        print(f"{'':<12}{'with the fault, float16':<66}{faulty.verdict:>12}  {told(faulty)}")
        setup = build(faulty=False)
        before = state()
        measure(setup, device="cpu", dtype="bfloat16", static=True, steps=4)
        after = state()
        changed = [key for key in before if before[key] != after[key]]
        print(f"{'':<12}left in the process: {', '.join(changed) or 'nothing'}")


if __name__ == "__main__":
    main()
