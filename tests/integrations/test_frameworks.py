"""Steps of Lightning, the HF Trainer, Accelerate, Ignite and PyG: healthy, and with a fault each.

On a CPU, these frameworks have bfloat16 alone. For float16 they are given what they make of it on a
GPU: autocast in float16 and a GradScaler.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.lab import codes, measure

EXAMPLES = Path(__file__).parents[2] / "examples"
DTYPES = ("bfloat16", "float16")


def net():
    return torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 4))


def loader():
    data = torch.utils.data.TensorDataset(torch.randn(64, 16), torch.randint(4, (64,)))
    return torch.utils.data.DataLoader(data, 8)


def scaler():
    return torch.amp.GradScaler("cpu", init_scale=2.0**14)


def lightning(faulty: bool) -> Callable[[Any], Any]:
    pl = pytest.importorskip("lightning.pytorch")
    pytest.importorskip("greenlet")
    from lightning.pytorch.plugins import MixedPrecision

    from pytest_amp.integrations.lightning import fit

    class Classifier(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def training_step(self, batch, _):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def on_after_backward(self):
            if faulty:  # Lightning has not unscaled yet
                torch.nn.utils.clip_grad_norm_(self.parameters(), 0.1)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def setup(arm):
        half = arm.enabled and arm.dtype == torch.float16
        plugins = [MixedPrecision("16-mixed", "cpu", scaler())] if half else []
        trainer = pl.Trainer(
            accelerator="cpu", precision=None if half else arm.lightning_precision,
            plugins=plugins, gradient_clip_val=1.0, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        return arm.loop(fit(trainer, Classifier(), loader()))

    return setup


def as_on_a_gpu(accelerator: Any, arm: Any) -> Any:
    if arm.mixed_precision == "fp16":
        accelerator.native_amp, accelerator.scaler = True, scaler()
    return accelerator


def hf_trainer(faulty: bool) -> Callable[[Any], Any]:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("greenlet")
    pytest.importorskip("accelerate")
    from pytest_amp.integrations.transformers import train

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, inputs, labels):
            return {"loss": F.cross_entropy(self.net(inputs), labels)}

    class Rows(torch.utils.data.Dataset):
        inputs, targets = torch.randn(64, 16), torch.randint(4, (64,))

        def __len__(self):
            return 64

        def __getitem__(self, index):
            return {"inputs": self.inputs[index], "labels": self.targets[index]}

    def setup(arm):
        class Trainer(transformers.Trainer):
            def create_accelerator_and_postprocess(self):
                super().create_accelerator_and_postprocess()
                as_on_a_gpu(self.accelerator, arm)

            def training_step(self, model, *arguments, **named):
                loss = super().training_step(model, *arguments, **named)
                if faulty:  # the Trainer has not unscaled yet
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                return loss

        arguments = transformers.TrainingArguments(
            "unused", per_device_train_batch_size=8, optim="sgd", learning_rate=0.1, use_cpu=True,
            disable_tqdm=True, report_to=[], save_strategy="no", logging_strategy="no",
            fp16=arm.mixed_precision == "fp16", bf16=arm.mixed_precision == "bf16",
        )  # fmt: skip
        return arm.loop(train(Trainer(Model(), arguments, train_dataset=Rows())))

    return setup


def accelerate(faulty: bool) -> Callable[[Any], Any]:
    module = pytest.importorskip("accelerate")

    def setup(arm):
        accelerator = module.Accelerator(mixed_precision=arm.mixed_precision, cpu=True)
        as_on_a_gpu(accelerator, arm)
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model, optimizer, batches = accelerator.prepare(model, optimizer, loader())
        endless = itertools.chain.from_iterable(itertools.repeat(batches))
        clip = torch.nn.utils.clip_grad_norm_ if faulty else accelerator.clip_grad_norm_

        def step():
            inputs, targets = next(endless)
            with accelerator.autocast():
                loss = F.cross_entropy(model(inputs), targets)
            accelerator.backward(loss)
            clip(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return loss

        return step

    return setup


def ignite(faulty: bool) -> Callable[[Any], Any]:
    engines = pytest.importorskip("ignite.engine")
    pytest.importorskip("greenlet")
    from pytest_amp.integrations.ignite import run

    def setup(arm):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def update(engine, batch):
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.cross_entropy(model(batch[0]), batch[1])
            arm.scaler.scale(loss).backward()
            if faulty:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return arm.loop(run(engines.Engine(update), loader()))

    return setup


def pyg(faulty: bool) -> Callable[[Any], Any]:
    nn = pytest.importorskip("torch_geometric.nn")

    def setup(arm):
        conv, head = nn.GCNConv(16, 32), torch.nn.Linear(32, 4)
        parameters = [*conv.parameters(), *head.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        nodes, edges = torch.randn(64, 16), torch.randint(64, (2, 256))
        graphs, targets = torch.arange(64) // 8, torch.randint(4, (8,))

        def step():
            optimizer.zero_grad()
            with arm.autocast():
                hidden = conv(nodes, edges).relu()
                pooled = nn.global_add_pool(hidden, graphs)
                loss = F.cross_entropy(head(pooled), targets)
            arm.scaler.scale(loss).backward()
            if faulty:
                torch.nn.utils.clip_grad_norm_(parameters, 0.1)
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    return setup


FRAMEWORKS = {each.__name__: each for each in (lightning, hf_trainer, accelerate, ignite, pyg)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_healthy_step_is_clean_and_runs_in_the_dtype(name: str, dtype: str) -> None:
    report = measure(FRAMEWORKS[name](faulty=False), dtype=dtype, steps=6)
    assert report.verdict == "pass"
    assert codes(report) == []
    assert report.coverage == 1.0
    assert len(report.amp.losses) == 6
    assert len(set(report.amp.losses)) > 1
    assert bool(report.amp.scales) == (dtype == "float16")  # whose scaler it was, it is seen


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_gradients_that_are_clipped_while_scaled_are_found(name: str) -> None:
    report = measure(FRAMEWORKS[name](faulty=True), dtype="float16", steps=6)
    assert report.verdict == "fail"
    assert "AMP203" in codes(report)
    [finding] = [each for each in report.findings if each.code == "AMP203"]
    assert finding.location is not None
    assert Path(__file__).name in finding.location


def state() -> dict[str, Any]:
    """What a framework may leave behind in the process."""
    import logging

    found: dict[str, Any] = {
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "environment": dict(os.environ),
        "filters": list(warnings.filters),
        "excepthook": sys.excepthook,
        "handlers": list(logging.root.handlers),
        "level": logging.root.level,
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "dtype": torch.get_default_dtype(),
        "random": torch.random.get_rng_state().tolist(),
        "autocast": torch.is_autocast_enabled("cpu"),
    }
    for name in ("PartialState", "AcceleratorState", "GradientState"):
        module = sys.modules.get("accelerate.state")
        found[name] = {} if module is None else dict(getattr(module, name)._shared_state)
    return found


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_nothing_is_left_of_a_framework(name: str) -> None:
    setup = FRAMEWORKS[name](faulty=False)  # imports it, which a test file does too
    measure(setup, dtype="bfloat16", steps=2)  # and it makes what it makes once
    before = state()
    measure(setup, dtype="bfloat16", steps=2)
    after = state()
    assert {key: after[key] for key in before if after[key] != before[key]} == {}


EXAMPLE_NEEDS = {
    "lightning": ("lightning", "greenlet"),
    "hf_trainer": ("transformers", "accelerate", "greenlet"),
    "accelerate": ("accelerate",), "ignite": ("ignite", "greenlet"),
    "pyg": ("torch_geometric", "jinja2"),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.needs(*EXAMPLE_NEEDS[name])) for name in EXAMPLE_NEEDS],
)
def test_the_example_runs(pytester: pytest.Pytester, name: str) -> None:
    pytester.makepyfile(**{f"test_{name}": (EXAMPLES / f"test_{name}.py").read_text()})
    result = pytester.runpytest("--amp-static", "--amp-steps=3", "--amp-json=amp.json")
    result.assert_outcomes(passed=1)
    assert '"verdict": "pass"' in (pytester.path / "amp.json").read_text()
