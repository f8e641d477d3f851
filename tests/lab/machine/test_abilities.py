"""What really runs where a precision is asked for, on devices that are there and that are not."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from pytest_amp.lab.machine import abilities, device
from pytest_amp.lab.machine.abilities import effective_precision
from pytest_amp.settings.precision import EffectivePrecision

ASKED = (
    None, "32-true", "tf32", "16-mixed", "16-true", "bf16-mixed", "bf16-true", "fp8", "fp8-rowwise",
)  # fmt: skip
NO_TF32 = "{} has no TF32, so float32 products run in float32"
EMULATED = (
    "{} has no float8: its values are rounded to float8, and the products run in bfloat16, which "
    "is no faster"
)


@pytest.fixture
def gpu(monkeypatch, torchao):
    """Let torch believe in a GPU of that compute capability, and answer by it."""

    def there(capability: tuple[int, int], name: str) -> None:
        monkeypatch.setattr(device, "how_many", lambda kind: int(kind in ("cpu", "cuda")))
        monkeypatch.setattr(abilities, "how_many", device.how_many)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)  # if only by emulation
        monkeypatch.setattr(
            torch.cuda.amp.common, "amp_definitely_not_available", lambda: False
        )  # fmt: skip

    return there


@pytest.fixture
def torchao(monkeypatch):
    """Say whether torchao is installed; it is, unless a test says otherwise."""

    def installed(there: bool) -> None:
        monkeypatch.setattr(abilities, "find_spec", lambda _: object() if there else None)

    installed(there=True)
    return installed


def in_the_documentation() -> dict[str, dict[str, str]]:
    """The table of the page, by column and by what is requested."""
    page = Path(__file__).parents[3] / "docs" / "reference" / "precision.md"
    lines = page.read_text().partition("| requested |")[2].splitlines()
    columns, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (lines[0], *lines[2:])
        if line.startswith(("|", " "))
    ]
    return {
        column: {
            asked.strip(" `\""): row[number]
            for row in rows
            for asked in row[0].split(",")
        }
        for number, column in enumerate(columns, start=1)
    }  # fmt: skip


def answers(kind: str) -> dict[object, tuple[str, str | None]]:
    found = {asked: effective_precision(asked, kind) for asked in ASKED}
    return {asked: (str(each.recipe), each.reason) for asked, each in found.items()}


def as_asked(**others: tuple[str, str | None]) -> dict[object, tuple[str, str | None]]:
    same = {
        None: "fp32", "32-true": "fp32", "tf32": "tf32", "16-mixed": "fp16",
        "16-true": "fp16-true", "bf16-mixed": "bf16", "bf16-true": "bf16-true", "fp8": "fp8",
        "fp8-rowwise": "fp8-rowwise",
    }  # fmt: skip
    changed = {name.replace("_", "-"): other for name, other in others.items()}
    return {asked: (name, None) for asked, name in same.items()} | changed


def test_on_a_cpu(torchao) -> None:
    emulated = EMULATED.format("a CPU")
    assert answers("cpu") == as_asked(
        tf32=("fp32", NO_TF32.format("a CPU")),
        fp8=("fp8", emulated),
        fp8_rowwise=("fp8-rowwise", emulated),
    )


@pytest.mark.parametrize("name", ["Tesla V100", "Tesla T4"])
def test_on_a_gpu_before_ampere(gpu, name) -> None:
    gpu((7, 0) if "V100" in name else (7, 5), name)
    assert answers("cuda") == as_asked(
        tf32=("fp32", NO_TF32.format(name)),
        fp8=("fp8", EMULATED.format(name)),
        fp8_rowwise=("fp8-rowwise", EMULATED.format(name)),
    )


def test_on_an_ampere_gpu(gpu) -> None:
    gpu((8, 0), "NVIDIA A100")
    emulated = EMULATED.format("NVIDIA A100")
    assert answers("cuda:0") == as_asked(
        fp8=("fp8", emulated), fp8_rowwise=("fp8-rowwise", emulated)
    )


def test_on_an_ada_gpu_float8_has_one_scale_to_a_tensor(gpu) -> None:
    gpu((8, 9), "NVIDIA L4")
    assert answers("cuda") == as_asked(fp8_rowwise=("fp8-rowwise", EMULATED.format("NVIDIA L4")))


def test_a_hopper_gpu_runs_all_as_asked(gpu) -> None:
    gpu((9, 0), "NVIDIA H100")
    assert answers("cuda") == as_asked()


def test_where_torch_refuses_bfloat16_it_does_not_become_float16(gpu, monkeypatch) -> None:
    gpu((7, 5), "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    refused = (
        "torch leaves autocast off here (Current CUDA Device does not support bfloat16), so "
        "everything runs in float32"
    )
    found = answers("cuda")
    assert found["bf16-mixed"] == found["fp8"] == ("fp32", refused)
    assert found["16-mixed"] == ("fp16", None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is not there")
def test_on_a_gpu_that_is_not_there_torch_switches_autocast_off(torchao) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch's own warning is the answer, and nothing else
        found = answers("cuda")
    for asked in ("16-mixed", "bf16-mixed", "fp8", "fp8-rowwise"):
        recipe, reason = found[asked]
        assert recipe == "fp32"
        assert str(reason).startswith("torch leaves autocast off here (")
        assert "CUDA is not available" in str(reason)  # in words that differ by version
        assert str(reason).endswith("), so everything runs in float32")
    assert found["tf32"] == ("fp32", NO_TF32.format("a cuda device that is not there"))
    assert found["bf16-true"] == ("bf16-true", None)


def test_without_torchao_float8_layers_stay_in_bfloat16(gpu, torchao) -> None:
    gpu((9, 0), "NVIDIA H100")
    torchao(there=False)
    assert effective_precision("fp8+compile", "cuda") == EffectivePrecision(
        effective_precision("bf16+compile", "cuda").recipe,
        "float8 needs torchao, which is not installed (pip install 'pytest-amp[fp8]'), so linear "
        "layers run in bfloat16",
    )


def test_the_device_is_the_one_that_auto_chooses(gpu, monkeypatch) -> None:
    for name in ("LOCAL_RANK", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)
    gpu((7, 0), "Tesla V100")
    assert "Tesla V100 has no TF32" in str(effective_precision("tf32").reason)


def test_what_is_neither_a_precision_nor_a_device() -> None:
    with pytest.raises(ValueError, match="'int4' is not a recipe"):
        effective_precision("int4", "cpu")
    with pytest.raises(RuntimeError, match="quantum"):
        effective_precision("bf16", "quantum")
    assert "unsupported autocast device_type 'meta'" in str(
        effective_precision("bf16", "meta").reason
    )


CAPABILITIES = {
    "CUDA 7.0, 7.5": ((7, 0), (7, 5)),
    "CUDA 8.0": ((8, 0),),
    "CUDA 8.9": ((8, 9),),
    "CUDA 9.0": ((9, 0), (10, 0)),
}


@pytest.mark.parametrize("column", ["CPU", *CAPABILITIES, "CUDA that is not there"])
def test_the_table_of_the_documentation(gpu, torchao, monkeypatch, column) -> None:
    spelled = in_the_documentation()[column]
    assert {"None", "16-mixed", "torch.bfloat16", "fp8-rowwise"} < set(spelled)
    if column == "CUDA that is not there":
        monkeypatch.setattr(abilities, "how_many", lambda kind: int(kind == "cpu"))
    for capability in CAPABILITIES.get(column, (None,)):
        if capability is not None:
            gpu(capability, "a GPU")
        for asked, expected in spelled.items():
            dtype = asked.removeprefix("torch.")
            requested = getattr(torch, dtype) if dtype != asked else asked
            found = effective_precision(requested, "cpu" if column == "CPU" else "cuda")
            emulated = "no float8" in str(found.reason) and found.recipe.float8 is not None
            shown = f"{found.recipe}, emulated" if emulated else str(found.recipe)
            assert shown == expected, (asked, capability)
