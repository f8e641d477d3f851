"""``pytest-amp doctor``: say on one screen whether numbers from this machine can be trusted."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from pytest_amp import __version__, units
from pytest_amp.cli.console import FINE, USAGE, beside, complain, show, take_storage
from pytest_amp.settings import table as settings
from pytest_amp.storage import store

HELP = "whether numbers from this machine can be trusted, and what to change first"
_WRITTEN_FOR = ("5.1", "5.2", "5.3")
# Environment variables that affect a baseline, and what to do about those that spoil it.
_VARIABLES = {
    "CUDA_LAUNCH_BLOCKING": "unset CUDA_LAUNCH_BLOCKING: the host waits for every kernel",
    "TORCH_SHOW_DISPATCH_TRACE": "unset TORCH_SHOW_DISPATCH_TRACE: it slows every operator",
    "NVIDIA_TF32_OVERRIDE": "NVIDIA_TF32_OVERRIDE changes what fp32 means: unset it, or keep it "
    "the same everywhere",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE changes what fp32 means: "
    "unset it, or keep it the same everywhere",
    "OMP_NUM_THREADS": "",
    "MKL_NUM_THREADS": "",
    "PYTORCH_CUDA_ALLOC_CONF": "",
    "PYTORCH_ALLOC_CONF": "",
    "CUBLAS_WORKSPACE_CONFIG": "",
    "CUDA_VISIBLE_DEVICES": "",
    "TORCHDYNAMO_DISABLE": "",
}
# For how long the processors are watched.
_LOOKS_FOR_S = 0.5
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


class Line(NamedTuple):
    """A fact, and what to change before trusting a number; "" if there is nothing to change."""

    name: str
    fact: str
    remedy: str = ""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    take_storage(parser)
    parser.add_argument("--device", default="auto", help="as --amp-device (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def run(options: argparse.Namespace) -> int:
    """Print each fact, marking those that have a remedy, and then the remedies.

    Returns:
        The exit code; a machine with problems is not an error.
    """
    try:
        settings.parse(settings.entry_for("device"), options.device)
    except ValueError as error:
        complain(f"--device: {str(error).removeprefix('device: ')}")
        return USAGE
    lines = [*_software(), *_device(options.device), *_variables(), *_stored(options.storage)]
    if options.json:
        show(json.dumps([line._asdict() for line in lines], indent=1))
        return FINE
    width = max(len(line.name) for line in lines)
    for line in lines:
        show(beside(f"{'!' if line.remedy else ' '} {line.name:<{width}}  ", line.fact))
    remedies = [line.remedy for line in lines if line.remedy]
    show("\nbefore trusting a number:" if remedies else "\nnothing stands in the way of a number")
    for remedy in remedies:
        show(beside("  - ", remedy))
    return FINE


def _software() -> Iterator[Line]:
    yield Line("pytest-amp", f"{__version__}, Python {platform.python_version()}")
    try:
        found = version("pytest-benchmark")
    except PackageNotFoundError:
        yield Line("pytest-benchmark", "not installed", "install pytest-benchmark: without it "
                   "nothing is kept")  # fmt: skip
        return
    tried = found.startswith(tuple(f"{each}." for each in _WRITTEN_FOR)) or found in _WRITTEN_FOR
    yield Line("pytest-benchmark", found, "" if tried else
               f"pytest-benchmark {found} is not one that this pytest-amp was tried with "
               f"({_WRITTEN_FOR[0]} to {_WRITTEN_FOR[-1]})")  # fmt: skip


def _device(wanted: str) -> Iterator[Line]:
    import torch

    from pytest_amp.errors import AmpError
    from pytest_amp.lab.machine import device as devices
    from pytest_amp.lab.machine.global_state import GlobalState

    unseen = devices.unseen()
    if unseen is not None:
        yield Line("accelerator", f"built for {unseen}, no GPU visible",
                   f"torch is built for {unseen} and sees no GPU, so gates that need one are not "
                   "checked: see that nvidia-smi (or rocm-smi) lists it, that the container was "
                   "given it, and that CUDA_VISIBLE_DEVICES does not hide it")  # fmt: skip
    try:
        device = devices.choose(wanted)
    except AmpError as error:
        yield Line("device", wanted, str(error).replace("--amp-device", "--device"))
        return
    versions = ", ".join(f"{name} {each}" for name, each in device.versions().items() if each)
    yield Line("device", f"{device.name()} ({device})")
    yield Line("versions", versions)
    for dtype in (torch.float16, torch.bfloat16):
        name, native = str(dtype).removeprefix("torch."), device.native_support(dtype)
        usual = ", what autocast uses here" if dtype is device.default_dtype() else ""
        yield Line(name, ("native" if native else "emulated, and slow") + usual, "" if native else
                   f"{name} has no fast path here: don't gate speed in it")  # fmt: skip
    flags = GlobalState(device).flags()
    yield Line("flags", ", ".join(f"{name} {value}" for name, value in flags.items()
                                  if name in _SHIFTING))  # fmt: skip
    yield from _gpu_clocks(device) if device.type == "cuda" else _cpu_clocks()
    yield from _processors()


_SHIFTING = (
    "float32_matmul_precision", "cuda.matmul.allow_tf32", "cudnn.allow_tf32", "cudnn.benchmark",
    "deterministic_algorithms", "num_threads",
)  # fmt: skip


def _processors() -> Iterator[Line]:
    """Yield what others take of the processors now, and whether torch's threads find room."""
    import torch

    from pytest_amp.judge.contention import crowded
    from pytest_amp.lab.machine import contention

    cores, threads, before = contention.cores(), torch.get_num_threads(), contention.read()
    time.sleep(_LOOKS_FOR_S)
    taken = contention.read().since(before)
    if cores is None or taken.others_s is None:
        return
    others = max(0.0, taken.others_s / taken.wall_s)
    shared = contention.processors()
    fact = f"others keep {others:.1f} of {shared or cores:g} cores busy"
    yield Line("processors", f"{fact}; torch takes {units.plural(threads, 'thread')}",
               crowded(cores, threads, others, shared) or "")  # fmt: skip


def _cpu_clocks() -> Iterator[Line]:
    cores = os.cpu_count() or 1
    if hasattr(os, "getloadavg"):
        load = os.getloadavg()[0]
        yield Line("load", f"{load:.1f} on {units.plural(cores, 'core')} in the last minute",
                   "something else keeps the processor busy: stop it" if load > cores else
                   "")  # fmt: skip
    if _GOVERNOR.exists():
        governor = _GOVERNOR.read_text().strip()
        yield Line("governor", governor, "" if governor == "performance" else
                   f"the frequency governor is {governor}: set performance "
                   "(cpupower frequency-set -g performance)")  # fmt: skip


def _gpu_clocks(device: Any) -> Iterator[Line]:
    """Yield clocks, temperature and throttling, if NVML's bindings are installed."""
    from pytest_amp.lab.machine import nvml

    try:
        gpu = nvml.Gpu(device.uuid() or "")
        found = gpu.health()
    except nvml.Unknown as unknown:
        yield Line("clocks", f"not known: {unknown}")
        return
    held = found.state.held_back
    yield Line("clocks", f"{found.state.clock_mhz} of {found.most_mhz} MHz, {found.celsius} C",
               f"the clocks are held back by {' and '.join(held)}: cool it, give it power, or lock "
               "lower ones with nvidia-smi -lgc" if held else "")  # fmt: skip
    yield Line("use", f"{found.busy}% busy",
               "something else keeps the GPU busy: stop it" if found.busy > 5 else "")  # fmt: skip


def _variables() -> Iterator[Line]:
    for name, remedy in _VARIABLES.items():
        if name in os.environ:
            yield Line(name, store.printable(os.environ[name]), remedy)


def _stored(storage: str) -> Iterator[Line]:
    from pytest_amp.storage.index import Index

    try:
        root = store.folder(storage)
        with Index(root) as index:
            (runs, results), broken = index.size(), index.warnings
    except (ValueError, OSError) as error:
        yield Line("storage", store.printable(storage), f"the storage can't be read: {error}")
        return
    fact = (
        f"{store.printable(root)}: {units.plural(runs, 'run')}, {units.plural(results, 'result')}"
    )
    if root.exists() and not os.access(root, os.W_OK):
        yield Line("storage", fact, f"{store.printable(root)} can't be written: nothing is saved")
    elif broken:
        yield Line("storage", fact, f"{units.plural(len(broken), 'thing')} in it can't be read, "
                   f"the first: {broken[0]}")  # fmt: skip
    else:
        empty = f"{store.printable(root)}: empty; keep results with --benchmark-autosave"
        yield Line("storage", fact if runs else empty)
