"""What was foreseen on a CPU, held against a GPU: dtype maps under CUDA's rules, and forecasts.

These run only when they are asked for: `python -m benchmarks.gpu --only policy,forecast` (under
four minutes).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

import cuda_policy
import forecast
import policy_cost

from benchmarks.gpu.checks import check
from benchmarks.gpu.lab import DEV, ON_CUDA, measure
from pytest_amp.judge.devices import DEVICES
from pytest_amp.judge.dtype_map import lines_of
from pytest_amp.judge.dtype_map_text import diff
from pytest_amp.lab.policy import cuda_rules
from pytest_amp.lab.watch.operators import OpRecord

TEXT_MODELS = ("GPT-2", "Llama", "BERT", "T5", "Mamba", "ViT", "SegFormer", "ConvNeXt")


def public(name):
    build, shapes = cuda_policy.MODELS[name]
    return cuda_policy.with_dropout(build), lambda device: cuda_policy.inputs_of(shapes, device)


def ours(name):
    build, data = policy_cost.MODELS[name]
    return build, lambda device: ([data()[0].to(device)], {})


def recurrent(kind):
    return (
        lambda: kind(16, 32, num_layers=2, dropout=0.1),
        lambda device: ([torch.randn(7, 4, 16, device=device)], {}),
    )


MODELS = {
    **{name: lambda name=name: public(name) for name in TEXT_MODELS},
    "U-Net": lambda: ours("U-Net"),
    "encoder": lambda: ours("ViT"),
    "LSTM": lambda: recurrent(nn.LSTM),
    "GRU": lambda: recurrent(nn.GRU),
}


def map_of(build, data, device, dtype):
    torch.manual_seed(0)
    model = build().to(device)
    args, kwargs = data(device)
    record = OpRecord(model.parameters())
    with record.watching():
        with torch.autocast("cuda", dtype):
            out = model(*args, **kwargs)
        out = getattr(out, "last_hidden_state", out)
        (out if isinstance(out, torch.Tensor) else out[0]).float().square().mean().backward()
    return lines_of(record.operators())


@check("policy", needs_cuda=False, seconds=110)
def the_map_of_a_cpu_is_the_gpus():
    """Forward and backward maps, in float16, of twelve models under CUDA's rules and on CUDA."""
    found, apart = {}, 0
    for name, given in MODELS.items():
        try:
            build, data = given()
            with cuda_rules():
                foreseen = map_of(build, data, "cpu", torch.float16)
                seen = None if ON_CUDA else map_of(build, data, "cpu", torch.float16)
            if ON_CUDA:
                seen = map_of(build, data, DEV, torch.float16)
        except Exception as error:  # noqa: BLE001 - the others are asked nevertheless
            found[name] = f"{type(error).__name__}: {str(error)[:160]}"
            apart += 1
            continue
        changes = list(diff(foreseen, seen))
        apart += bool(changes)
        found[name] = {"lines": len(seen), "differ": len(changes), "first": changes[:8]}
    return "proved" if apart else "refuted", {"expected": "a map that differs", "maps": found}


class Stack(nn.Module):
    """A GPT of usual widths."""

    def __init__(self, width=768, layers=6, vocabulary=8192):
        super().__init__()
        self.table, self.head = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary)
        layer = nn.TransformerEncoderLayer(
            width, 12, 4 * width, 0.0, F.gelu, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, ids):
        return self.head(self.layers(self.table(ids))).transpose(1, 2)


def text(batch, length, vocabulary):
    return lambda: (
        torch.randint(vocabulary, (batch, length)), torch.randint(vocabulary, (batch, length))
    )  # fmt: skip


BY_KIND = {
    "wide layers": (lambda: forecast.dense(8192, 8192, 8192, 16), forecast.classes(8192, 8192)),
    "GPT": (Stack, text(8, 512, 8192)),
    "residual": (lambda: forecast.Residual(256, 6), forecast.classes(64, 3, 56, 56)),
    "depthwise": (lambda: forecast.Depthwise(256), forecast.classes(64, 3, 112, 112)),
    "U-Net": (lambda: policy_cost.UNet(64), lambda: (
        torch.randn(16, 3, 128, 128), torch.randint(2, (16, 128, 128)),
    )),
    "attention": (forecast.Attention, forecast.classes(16, 4096, 128)),
    "pointwise": (forecast.Pointwise, forecast.classes(65_536, 256, count=256)),
    "embeddings": (forecast.Embeddings, forecast.STEPS["embeddings"][1]),
    "LSTM": (policy_cost.LSTM, text(64, 256, 128)),
    "tiny layers": forecast.STEPS["tiny layers"],
}  # fmt: skip


@check("forecast", needs_cuda=False, seconds=120)
def measured_speedups_lie_within_their_forecasts():
    """Ten steps: the range by measured ceilings, and that of the data sheet, in bfloat16."""
    steps = BY_KIND if ON_CUDA else dict(list(forecast.STEPS.items())[:3])
    name = torch.cuda.get_device_name(DEV) if ON_CUDA else "A100"
    sheet = next((each for each in reversed(DEVICES) if each in name.split()), None)
    found, outside, above = {}, 0, 0
    for kind, (build, data) in steps.items():
        report = measure(
            forecast.setup_of(build, data), static=False, dtype="bfloat16", max_time=2.5, steps=3,
            max_loss_diff="none", forecast=[sheet] if sheet else [],
        )  # fmt: skip
        here, speedup = report.attainable, report.speedup.value
        found[kind] = {
            "measured": speedup,
            "here": [here.low, here.high, here.bounds or here.reason],
            "sheet": [str(each) for each in report.forecasts],
            "step_ms": 1e3 * report.amp.step_time_s,
        }
        outside += not (here.low or 0) <= speedup <= (here.high or 0)
        above += speedup > 1.05 * (here.high or 0)
    bad = above or outside > len(steps) // 10
    return "proved" if bad else "refuted", {
        "expected": "more than one in ten outside, or one above the attainable speedup",
        "outside": outside,
        "above": above,
        "data_sheet_of": sheet,
        "steps": found,
    }
