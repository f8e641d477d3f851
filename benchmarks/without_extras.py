"""Run the fast tests as if an optional package were not installed, once for each of them.

A line tells for each package how many tests passed, were skipped for want of it, and failed. All
packages in turn take an hour on two cores.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "matplotlib": "matplotlib",
    "pandas' plotting": "pandas.plotting._matplotlib",
    "jinja2": "jinja2",
    "optuna": "optuna",
    "greenlet": "greenlet",
    "torchao": "torchao",
    "lightning": "lightning,pytorch_lightning,lightning_fabric",
    "transformers": "transformers,accelerate",
    "ignite": "ignite",
    "wandb": "wandb",
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
}
PACKAGES["all of these"] = ",".join(PACKAGES.values())


def run(blocked: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT / "tests" / "helpers" / "blocking"), os.environ.get("PYTHONPATH", "")]
    pytest = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*pytest, *arguments], capture_output=True, text=True, cwd=ROOT, check=False,
        env={
            **os.environ,
            "PYTEST_AMP_BLOCKED": blocked,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        },
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PACKAGES, action="append", help="block this one")
    parser.add_argument("arguments", nargs="*", help="for pytest, behind --")
    options = parser.parse_args()
    failed = False
    for name in options.only or PACKAGES:
        ran = run(PACKAGES[name], options.arguments)
        last = ran.stdout.strip().rpartition("\n")[2]
        print(f"{name:<18} {re.sub(r' in .*| deselected,?| warnings?', '', last)}", flush=True)
        for line in ran.stdout.splitlines():
            if line.startswith(("FAILED", "ERROR")):
                print(f"    {line}", flush=True)
        failed |= ran.returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
