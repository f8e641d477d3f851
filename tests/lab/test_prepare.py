"""What an arm makes of a model: its dtype, its layout, float8 layers, and compiled code."""

from __future__ import annotations

import logging
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_amp.errors import AmpError
from pytest_amp.lab import prepare
from pytest_amp.lab.arm import Arm
from pytest_amp.lab.machine.compiled import graphs_compiled
from pytest_amp.lab.machine.device import Device
from pytest_amp.recipes import NAMES, Recipe
from tests.helpers.lab import CPU, train

float8 = pytest.mark.parametrize("name", ["fp8", "fp8-rowwise"])
compiled = pytest.mark.parametrize("name", ["bf16+compile", "fp8+compile", "bf16-true+compile"])


def arm_of(name: str) -> Arm:
    return Arm("amp", Device(CPU), Recipe.parse(name))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))


@pytest.fixture
def backend(monkeypatch):
    """Compile without a code generator."""
    compile_ = torch.compile
    asked = []

    def compiled(function, mode):
        asked.append(mode)
        return compile_(function, backend="eager")

    monkeypatch.setattr(torch, "compile", compiled)
    torch._dynamo.reset()
    yield asked
    torch._dynamo.reset()


@pytest.mark.parametrize("name", NAMES)
def test_a_prepared_model_trains(name) -> None:
    if name.startswith("fp8"):
        pytest.importorskip("torchao")
    arm, model = arm_of(name), net()
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1)  # made before the model is prepared
    assert arm.prepare(model) is model
    assert [id(each) for each in model.parameters()] == [id(each) for each in parameters]
    x = torch.randn(8, 16)
    step = train(arm, optimizer, lambda: F.mse_loss(model(x).float(), x))
    losses = [step().item() for _ in range(6)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("name", "enabled", "dtype", "scales", "accelerate", "lightning"),
    [
        ("fp32", False, torch.float32, False, "no", "32-true"),
        ("tf32", False, torch.float32, False, "no", "32-true"),
        ("bf16", True, torch.bfloat16, False, "bf16", "bf16-mixed"),
        ("fp16", True, torch.float16, True, "fp16", "16-mixed"),
        ("bf16-true", False, torch.bfloat16, False, "no", "bf16-true"),
        ("fp16-true", False, torch.float16, False, "no", "16-true"),
        ("fp8+compile", True, torch.bfloat16, False, "bf16", "bf16-mixed"),
    ],
)
def test_an_arm_knows_its_recipe(name, enabled, dtype, scales, accelerate, lightning) -> None:
    arm = arm_of(name)
    assert str(arm.recipe) == name
    assert (arm.enabled, arm.dtype, arm.scaler.is_enabled()) == (enabled, dtype, scales)
    assert (arm.mixed_precision, arm.lightning_precision) == (accelerate, lightning)
    with arm.autocast():
        assert torch.is_autocast_enabled("cpu") is enabled
        assert not enabled or torch.get_autocast_dtype("cpu") is dtype


@pytest.mark.parametrize("name", ["bf16-true", "fp16-true"])
def test_a_model_that_is_kept_in_a_reduced_dtype_casts_what_it_is_given(name) -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(4, 16), nn.Linear(16, 2)

        def forward(self, tokens, *, others):
            assert tokens.dtype is torch.int64
            assert {key: each.dtype for key, each in others.items()} == {"x": arm.dtype}
            return self.head(self.embedding(tokens) + others["x"])

    arm = arm_of(name)
    model = arm.prepare(Embedded())
    assert {each.dtype for each in model.parameters()} == {arm.dtype}
    assert model(torch.tensor([1]), others={"x": torch.ones(16)}).dtype is arm.dtype


def test_channels_last() -> None:
    model = arm_of("bf16+channels_last").prepare(nn.Conv2d(3, 4, 3))
    assert model.weight.is_contiguous(memory_format=torch.channels_last)


@float8
def test_linear_layers_become_float8_layers_where_kernels_could_take_them(name) -> None:
    pytest.importorskip("torchao")
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 10), nn.Linear(10, 16))
    arm_of(name).prepare(model)
    kinds = [type(each).__name__ for each in model]
    assert kinds == ["Float8Linear", "Linear", "Linear"]


def test_what_torchao_says_of_its_kernels_is_not_the_users(capfd) -> None:
    before = logging.root.manager.disable
    with prepare._silent():
        logging.getLogger("torchao").warning("Failed to load a kernel")
        sys.stderr.write("Failed to load another")
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == before


@compiled
def test_a_compiled_model_is_the_same_object_and_torchs_own_modules_compile_too(
    name, backend
) -> None:
    if "fp8" in name:
        pytest.importorskip("torchao")
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    arm = arm_of(f"{name}:max-autotune")
    assert arm.prepare(model) is model
    assert backend == ["max-autotune"]
    before = graphs_compiled()
    with arm.autocast():
        model(torch.randn(2, 4, 16))
    assert graphs_compiled() > before


def test_what_is_no_model_is_named() -> None:
    with pytest.raises(AmpError, match=r"arm.prepare\(model\) takes a torch.nn.Module, not a list"):
        arm_of("bf16-true").prepare([net()])  # type: ignore[type-var]
