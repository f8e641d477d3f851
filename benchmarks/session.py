"""Whether a long session stays as small and as fast as it began.

Runs pytest once for each kind of test, with many tiny static ones, and reads behind each the
resident memory and the processor's time. Wanted: no growth, the last fifty as fast as the first.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

CONFTEST = """
import json, time
import pytest, torch

READINGS = []

def resident_mib():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096 / 2**20

@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    began = time.process_time()
    result = yield
    READINGS.append((time.process_time() - began, resident_mib()))
    return result

def pytest_sessionfinish():
    with open("readings.json", "w") as file:
        json.dump(READINGS, file)

@pytest.fixture
def model():
    return torch.nn.Linear(16, 4)

@pytest.fixture
def optimizer(model):
    return torch.optim.AdamW(model.parameters(), 1e-3)

@pytest.fixture
def batch():
    return torch.randn(8, 16), torch.randint(4, (8,))
"""

BODY = """
import pytest
import torch.nn.functional as F

@pytest.mark.amp(dtype="{dtype}")
@pytest.mark.parametrize("number", range({tests}))
def test_body(model, optimizer, batch, number):
    return F.cross_entropy(model(batch[0]), batch[1])
"""

SETUP = """
import pytest, torch
import torch.nn.functional as F

@pytest.mark.amp(dtype="{dtype}")
@pytest.mark.parametrize("number", range({tests}))
def test_setup(amp_benchmark, number):
    def setup(arm):
        model = torch.nn.Linear(16, 4)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        inputs, targets = torch.randn(8, 16), torch.randint(4, (8,))
        def step():
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.cross_entropy(model(inputs), targets)
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss
        return step
    amp_benchmark(setup)
"""

KINDS = {
    "body, float16": (BODY, "float16"),
    "body, bfloat16": (BODY, "bfloat16"),
    "setup, float16": (SETUP, "float16"),
    "setup, bfloat16": (SETUP, "bfloat16"),
}
FIRST = 50  # tests whose times are compared with the last ones'
WARMING = 10  # tests before that, in which torch imports what it needs


def session(source: str, dtype: str, tests: int) -> list[list[float]]:
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "conftest.py").write_text(CONFTEST)
        (project / "test_many.py").write_text(source.format(dtype=dtype, tests=tests + WARMING))
        command = [
            sys.executable, "-m", "pytest", "-q", "--amp-static", "-p", "no:cacheprovider",
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=project, capture_output=True, env=environment, text=True, check=False
        )
        if done.returncode:
            sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
        return json.loads((project / "readings.json").read_text())[WARMING:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", type=int, default=500)
    tests = parser.parse_args().tests
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {tests} tests each")
    for kind, (source, dtype) in KINDS.items():
        seconds, mib = zip(*session(source, dtype, tests), strict=True)
        first, last = statistics.median(seconds[:FIRST]), statistics.median(seconds[-FIRST:])
        print(
            f"{kind:<16} {mib[0]:.0f} -> {mib[-1]:.0f} MiB, "
            f"{(mib[-1] - mib[0]) / len(mib) * 1024:.0f} KiB a test; median CPU time of the first "
            f"{FIRST} {1000 * first:.0f} ms, of the last {1000 * last:.0f} ms ({last / first:.2f}x)"
        )


if __name__ == "__main__":
    main()
