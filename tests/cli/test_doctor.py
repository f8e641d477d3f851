"""pytest-amp doctor: one screen, and what to change first."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_amp.cli import doctor
from pytest_amp.cli import main as cli
from pytest_amp.lab.machine import contention
from pytest_amp.lab.machine import device as devices
from tests.helpers.saved_runs import document, report, save

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without load, governor or variables."""
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0), raising=False)
    monkeypatch.setattr(doctor, "_GOVERNOR", tmp_path / "none")
    monkeypatch.setattr(doctor, "_LOOKS_FOR_S", 0)
    others_keep(monkeypatch, 0.0)
    for name in doctor._VARIABLES:
        monkeypatch.delenv(name, raising=False)


def others_keep(monkeypatch: pytest.MonkeyPatch, cores: float) -> None:
    """Let others keep so many of two processors busy, beside two threads of torch."""
    nothing = contention.Counters(0.0, 0.0, 0.0, 0.0, {}, 0, 0.0, None, None)
    reads = itertools.cycle([nothing, nothing._replace(at_s=1.0, busy_s=cores)])
    monkeypatch.setattr(contention, "read", lambda: next(reads))
    monkeypatch.setattr(contention, "cores", lambda: 2.0)
    monkeypatch.setattr(contention, "processors", lambda: 2)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)


def told(capsys: Captured, *arguments: str) -> dict[str, tuple[str, str]]:
    assert cli.main(["doctor", "--device=cpu", "--json", *arguments]) == 0
    lines = json.loads(capsys.readouterr().out)
    return {line["name"]: (line["fact"], line["remedy"]) for line in lines}


def test_it_fits_a_screen_and_names_what_matters(capsys: Captured, tmp_path: Path) -> None:
    assert cli.main(["doctor", "--device=cpu", f"--storage={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    text = "\n".join(lines)
    for what in ("pytest-amp", "pytest-benchmark", "torch 2", "float16", "bfloat16", "storage"):
        assert what in text


def test_what_spoils_a_number_is_marked_and_listed(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    monkeypatch.setattr("os.getloadavg", lambda: (99.0, 0.0, 0.0), raising=False)
    governor = tmp_path / "governor"
    governor.write_text("powersave\n")
    monkeypatch.setattr(doctor, "_GOVERNOR", governor)
    assert cli.main(["doctor", "--device=cpu", f"--storage={tmp_path / 'x'}"]) == 0
    text = capsys.readouterr().out
    assert "! CUDA_LAUNCH_BLOCKING" in text
    before, _, remedies = text.partition("before trusting a number:\n")
    assert before
    assert "  - unset CUDA_LAUNCH_BLOCKING: the host waits for every kernel\n" in remedies
    assert "something else keeps the processor busy" in remedies
    assert "the frequency governor is powersave" in remedies


def test_another_process_and_threads_that_wait_for_each_other_are_told_before_anything_is_measured(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert told(capsys, f"--storage={tmp_path}")["processors"] == (
        "others keep 0.0 of 2 cores busy; torch takes 2 threads",
        "",
    )
    others_keep(monkeypatch, 1.0)
    assert told(capsys, f"--storage={tmp_path}")["processors"] == (
        "others keep 1.0 of 2 cores busy; torch takes 2 threads",
        (
            "other processes keep 1.0 of 2 cores busy, and 2 threads wait for each other: "
            "set OMP_NUM_THREADS=1"
        ),
    )


def test_variables_that_only_matter_are_told_without_a_word(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert told(capsys, f"--storage={tmp_path}")["OMP_NUM_THREADS"] == ("3", "")


def test_a_device_without_a_fast_path_is_told(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from pytest_amp.lab.machine.device import Device

    monkeypatch.setattr(Device, "native_support", lambda *_: False)
    fact, remedy = told(capsys, f"--storage={tmp_path}")["bfloat16"]
    assert fact == "emulated, and slow, what autocast uses here"
    assert remedy == "bfloat16 has no fast path here: don't gate speed in it"


def test_a_device_that_is_not_there_is_told(capsys: Captured, tmp_path: Path) -> None:
    assert cli.main(["doctor", "--device=xpu:7", "--json", f"--storage={tmp_path}"]) == 0
    [line] = [each for each in json.loads(capsys.readouterr().out) if each["name"] == "device"]
    assert "is not there" in line["remedy"]


class Nvml(SimpleNamespace):
    """What NVML's bindings answer of one GPU."""

    NVML_CLOCK_SM = NVML_TEMPERATURE_GPU = 1
    nvmlClocksThrottleReasonGpuIdle = 1
    nvmlClocksThrottleReasonApplicationsClocksSetting = 2
    nvmlClocksThrottleReasonSwPowerCap = 4
    nvmlClocksThrottleReasonSwThermalSlowdown = 32
    nvmlClocksThrottleReasonHwThermalSlowdown = 64

    def __init__(self, reasons: int = 0, busy: int = 0) -> None:
        asked: list[bytes] = []
        super().__init__(
            asked=asked,
            nvmlInit=lambda: None,
            nvmlDeviceGetHandleByUUID=asked.append,
            nvmlDeviceGetCurrentClocksThrottleReasons=lambda _: reasons,
            nvmlDeviceGetClockInfo=lambda *_: 1410,
            nvmlDeviceGetMaxClockInfo=lambda *_: 1980,
            nvmlDeviceGetTemperature=lambda *_: 61,
            nvmlDeviceGetUtilizationRates=lambda _: SimpleNamespace(gpu=busy),
        )


def gpu() -> Any:
    return SimpleNamespace(uuid=lambda: "ab-12")


@pytest.mark.parametrize(
    ("nvml", "remedies"),
    [
        (Nvml(), []),
        (Nvml(reasons=1 | 2), []),  # idle, and clocks that somebody locked
        (Nvml(reasons=4), ["the clocks are held back by its power cap: "]),
        (Nvml(reasons=32 | 64), ["the clocks are held back by its temperature: "]),
        (Nvml(busy=90), ["something else keeps the GPU busy"]),
    ],
)
def test_a_gpu_tells_what_holds_its_clocks_back(
    monkeypatch: pytest.MonkeyPatch, nvml: Nvml, remedies: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    lines = list(doctor._gpu_clocks(gpu()))
    assert lines[0].fact == "1410 of 1980 MHz, 61 C"
    found = [line.remedy for line in lines if line.remedy]
    assert [each[: len(begins)] for each, begins in zip(found, remedies, strict=True)] == remedies
    assert nvml.asked == [b"GPU-ab-12"]


def test_a_gpu_that_nvml_does_not_know_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in str(list(doctor._gpu_clocks(gpu())))

    def no(*_: object) -> None:
        raise RuntimeError("Driver Not Loaded")

    broken = Nvml()
    broken.nvmlInit = no
    monkeypatch.setitem(sys.modules, "pynvml", broken)
    (line,) = doctor._gpu_clocks(gpu())
    assert line.fact == "not known: NVML says Driver Not Loaded"


def test_the_storage_is_counted_and_what_is_broken_named(capsys: Captured, tmp_path: Path) -> None:
    assert told(capsys, f"--storage={tmp_path}")["storage"][0].endswith(
        "empty; keep results with --benchmark-autosave"
    )
    save(tmp_path, 1, document(report(), report("test_it.py::b")))
    assert told(capsys, f"--storage={tmp_path}")["storage"] == (
        f"{tmp_path}: 1 run, 2 results", "",
    )  # fmt: skip
    broken = save(tmp_path, 2, "{")
    fact, remedy = told(capsys, f"--storage={tmp_path}")["storage"]
    assert fact == f"{tmp_path}: 1 run, 2 results"
    assert remedy.startswith(f"1 thing in it can't be read, the first: {broken}: is not complete")
    (tmp_path / "file").write_text("")
    assert "can't be read" in told(capsys, f"--storage={tmp_path / 'file'}")["storage"][1]


def test_a_pytest_benchmark_that_was_not_tried_is_told(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "version", lambda _: "6.0.1")
    _, remedy = told(capsys, f"--storage={tmp_path}")["pytest-benchmark"]
    assert remedy.startswith("pytest-benchmark 6.0.1 is not one that this pytest-amp was tried")


def test_a_torch_that_sees_no_gpu_is_told(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "how_many", lambda kind: int(kind == "cpu"))
    monkeypatch.setattr("torch.version.cuda", "13.0")
    fact, remedy = told(capsys, f"--storage={tmp_path}")["accelerator"]
    assert fact == "built for CUDA 13.0, no GPU visible"
    assert "nvidia-smi" in remedy


def test_a_torch_that_is_built_for_none_misses_none(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "how_many", lambda kind: int(kind == "cpu"))
    for name in ("cuda", "hip", "xpu"):
        monkeypatch.setattr(f"torch.version.{name}", None, raising=False)
    assert "accelerator" not in told(capsys, f"--storage={tmp_path}")
