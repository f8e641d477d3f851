"""What the first use of CUDA changes: this group must find it untouched."""

from __future__ import annotations

import contextlib
import io
import os

import torch

from benchmarks.gpu.checks import check
from benchmarks.gpu.lab import DEVICE
from pytest_amp.cli.main import main
from pytest_amp.lab.machine import device as devices
from pytest_amp.lab.machine.global_state import remembered, seed_all


@check("lazy", seconds=60)
def random_numbers_behind_an_amp_test():
    """Until CUDA is used, torch keeps the user's seed waiting, and our own seed may replace it."""
    torch.manual_seed(7)  # as a conftest does, CUDA not initialized
    put_back = remembered()
    seed_all(0)
    torch.randn(5, device="cuda")  # the amp test
    put_back()
    behind = torch.randn(3, device="cuda").tolist()
    torch.cuda.manual_seed_all(7)
    wanted = torch.randn(3, device="cuda").tolist()
    same = behind == wanted
    return ("refuted" if same else "proved"), {
        "expected": "tests behind draw other CUDA numbers than without the amp test",
        "behind": behind,
        "without_it": wanted,
    }


@check("lazy", needs_cuda=False, seconds=30)
def environment_and_doctor():

    where = devices.choose(DEVICE)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(["doctor", "--device", DEVICE])
    return "measured", {
        "torch": torch.__version__,
        "names": list(where.names()),
        "lock": where.lock_name(),
        "versions": where.versions(),
        "doctor_rc": code,
        "doctor": out.getvalue()[:1500],
        "native": {d: where.native_support(getattr(torch, d)) for d in ("float16", "bfloat16")},
        "alloc_conf": os.environ.get("PYTORCH_CUDA_ALLOC_CONF")
        or os.environ.get("PYTORCH_ALLOC_CONF"),
    }
