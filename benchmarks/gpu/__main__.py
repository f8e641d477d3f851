"""The runner: each group in a process of its own, and those that time one after the other."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as Tree
from pathlib import Path

from benchmarks.gpu.checks import MODULES, run_group

ROOT = Path(__file__).parents[2]
ONLY_IF_ASKED = ("policy", "forecast")
BESIDE_EACH_OTHER = ("memory", "oom", "rules", "globals")
ALLOCATORS = ("", "expandable_segments:True", "backend:cudaMallocAsync")
RESOLUTION = 0.005  # of a speedup, from one process to the next


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--out", default="gpu_check_out", type=Path)
    parser.add_argument("--only", default="", help="groups or checks, with commas between them")
    parser.add_argument("--budget", type=float, default=290.0, help="seconds for all of it")
    parser.add_argument("--group", help=argparse.SUPPRESS)
    parser.add_argument("--go", help=argparse.SUPPRESS)
    options = parser.parse_args()
    only = set(filter(None, options.only.split(",")))
    if options.group:
        run_group(options.group, only, options.go)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "gpu_check.jsonl").open("w") as sink:
        Runner(options, only, sink).run()


class Runner:
    def __init__(self, options, only, sink):
        self.began = time.perf_counter()
        self.out, self.device, self.only = options.out.resolve(), options.device, only
        self.budget_s = options.budget
        self.sink = sink
        groups = groups_of_checks()
        self.groups = {groups.get(name, name) for name in only}
        self.ahead = None  # a process that has imported, and waits

    def run(self):
        self.read_clocks()
        caches = tempfile.mkdtemp(prefix="gpu_check_inductor_")
        cold = {
            "TORCHINDUCTOR_CACHE_DIR": caches,
            "TRITON_CACHE_DIR": f"{caches}/triton",
        }
        if self.wanted("lazy"):
            self.drain([self.spawn("lazy")])
        # Each of these has the device to itself; the next one imports meanwhile.
        self.alone("timing", then="profiler")
        self.alone("profiler")
        started = [self.spawn(group) for group in BESIDE_EACH_OTHER if self.wanted(group)]
        if self.wanted("compile-memory"):
            started.append(self.spawn("compile-memory", cold))
        if self.wanted("alloc") and self.device == "cuda":
            started += [self.spawn("alloc", {"PYTORCH_CUDA_ALLOC_CONF": c}) for c in ALLOCATORS]
        self.drain(started)
        if self.wanted("compile-timing"):
            self.drain([self.spawn("compile-timing", cold)])
        if self.wanted("tests") and self.device == "cuda":
            self.tests()
        if self.wanted("processes"):
            self.processes()
        for group in ONLY_IF_ASKED:
            if group in self.groups:
                self.drain([self.spawn(group)])
        self.read_clocks()
        self.tell({"check": "total", "verdict": "measured", "s": round(self.elapsed_s(), 1)})

    def wanted(self, group):
        return not self.only or group in self.groups

    def elapsed_s(self):
        return time.perf_counter() - self.began

    def left_s(self):
        return self.budget_s - self.elapsed_s()

    def tell(self, line):
        self.pass_on(json.dumps(line))

    def pass_on(self, line):
        print(line, flush=True)
        self.sink.write(line + "\n")
        self.sink.flush()

    def spawn(self, group, environment=None, go=None):
        """Start a group; it imports, and waits until the file `go` is there."""
        command = [sys.executable, "-m", "benchmarks.gpu", "--group", group]
        command += ["--only", ",".join(self.only), "--out", str(self.out)]
        command += ["--go", str(go)] if go else []
        with (self.out / f"{group}.stderr").open("a") as stderr:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**environment_of(self.device), **(environment or {})},
            )
        return group, process

    def alone(self, group, then=None):
        """Run a group while no other has the device."""
        if not self.wanted(group):
            return
        started, go = self.ahead or (self.spawn(group), None)
        self.ahead = None
        if go:
            go.touch()
        if then and self.wanted(then):
            waits_for = self.out / f".go-{os.getpid()}-{then}"
            self.ahead = self.spawn(then, go=waits_for), waits_for
        self.drain([started])
        if go:
            go.unlink()

    def drain(self, started):
        """Wait for them while there is time; pass their lines on."""
        lines = []
        for group, process in started:
            try:
                text, _ = process.communicate(timeout=max(1.0, self.left_s()))
            except subprocess.TimeoutExpired:
                process.kill()
                text, _ = process.communicate()
                self.tell({"check": f"group {group}", "verdict": "error", "why": "over the budget"})
            found = [line for line in text.splitlines() if line.startswith("{")]
            for line in found:
                self.pass_on(line)
            if process.returncode and not found:
                why = f"exit {process.returncode}, see {group}.stderr"
                self.tell({"check": f"group {group}", "verdict": "error", "why": why})
            lines += map(json.loads, found)
        return lines

    def tests(self):
        """The tests that need a GPU, by pytest: one line in sum."""
        results = self.out / "gpu_tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "--durations=8"]
        command += ["-p", "pytest_amp.plugin", "-p", "no:cacheprovider", "-o", "required_plugins="]
        command += ["-o", "junit_logging=no", f"--junitxml={results}"]
        command += ["tests/gpu", "tests/catalogue", "-k", "test_cuda or AMP404 or AMP405"]
        began, why = time.perf_counter(), None
        with (self.out / "gpu_tests.log").open("w") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, env=environment_of(self.device)
            )
            try:
                process.wait(timeout=max(5.0, self.left_s() - 5))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)  # so that its results are written
                why = "over the budget: a part ran"
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
        totals, failures = read_results(results)
        verdict = "proved" if failures else "refuted" if not why else "measured"
        seconds = round(time.perf_counter() - began, 1)
        self.tell(
            {"check": "tests_on_the_gpu", "verdict": verdict, "expected": "a test that fails"}
            | {"why": why, **totals, "failures": failures, "s": seconds}
        )

    def processes(self):
        """Whether one process's speedup is the next one's."""
        lines = []
        for _ in range(3):
            if self.left_s() > 15:
                lines += self.drain([self.spawn("processes")])
        for name in ("matmul bfloat16", "tiny float16"):
            seen = [line[name] for line in lines if name in line]
            if len(seen) < 2:
                continue
            apart = max(each["low"] for each in seen) / min(each["high"] for each in seen) - 1
            medians = [each["median"] for each in seen]
            self.tell(
                {
                    "check": f"process to process, {name}",
                    "verdict": "proved" if apart > RESOLUTION else "refuted",
                    "expected": f"intervals more than {RESOLUTION:.1%} apart",
                    "intervals_apart": apart,
                    "medians": medians,
                    "spread": max(medians) / min(medians) - 1,
                }
            )

    def read_clocks(self):
        """The GPU's own account of itself, before and behind all checks."""
        what = "name,driver_version,clocks.sm,clocks.max.sm,power.limit,temperature.gpu"
        if self.device != "cuda":
            return
        command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv"]
        with contextlib.suppress(OSError), (self.out / "nvidia-smi.csv").open("a") as log:
            subprocess.run(command, stdout=log, check=False)


def environment_of(device):
    """Of a child: the checkout is importable, and it is the only rank."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "PYTEST_ADDOPTS")
    }
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", "GPU_CHECK_DEVICE": device}


def groups_of_checks():
    """The group of each check, read off the sources: importing them takes torch's seconds."""
    pattern = re.compile(r'^@check\("([\w-]+)".*\ndef (\w+)', re.MULTILINE)
    return {
        name: group
        for module in MODULES
        for group, name in pattern.findall(
            Path(__file__).with_name(f"{module}.py").read_text("utf-8")
        )
    }


def read_results(path):
    """How many tests passed, failed and were skipped, and what the failures say."""
    totals, failures = {"passed": 0, "failed": 0, "skipped": 0}, {}
    if not path.exists():
        return totals, failures
    for case in Tree.parse(path).getroot().iter("testcase"):
        tags = {each.tag: each for each in case}
        bad = tags.get("failure", tags.get("error"))
        totals["failed" if bad is not None else "skipped" if "skipped" in tags else "passed"] += 1
        if bad is not None:
            failures[case.get("name")] = (bad.get("message") or "")[:300]
    return totals, failures


if __name__ == "__main__":
    main()
