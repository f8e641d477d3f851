"""What having pytest-amp installed costs a test run that does not use it.

Collects a project with one trivial test, with the plugin and with ``-p no:amp``, alternating, and
prints the median difference of the pairs. Wanted: at most 10 ms.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest


def collect(project: Path, *options: str) -> float:
    command = [sys.executable, "-m", "pytest", "--co", "-q", "-p", "no:cacheprovider", *options]
    # An installed package has its bytecode, whatever the shell that runs this says.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    subprocess.run(command, cwd=project, check=True, capture_output=True, env=environment)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20)
    pairs = parser.parse_args().pairs
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "test_trivial.py").write_text("def test_trivial():\n    pass\n")
        collect(project), collect(project, "-p", "no:amp")
        with_ms, without_ms = [], []
        for number in range(pairs):
            arms = [(with_ms, ()), (without_ms, ("-p", "no:amp"))]
            for times, options in arms if number % 2 else reversed(arms):
                times.append(1000 * collect(project, *options))
    differences = [a - b for a, b in zip(with_ms, without_ms, strict=True)]
    print(f"Python {platform.python_version()}, pytest {pytest.__version__}, {pairs} pairs")
    print(f"with the plugin     median {statistics.median(with_ms):.1f} ms")
    print(f"with -p no:amp      median {statistics.median(without_ms):.1f} ms")
    print(f"difference of pairs median {statistics.median(differences):.1f} ms (wanted: <= 10)")


if __name__ == "__main__":
    main()
