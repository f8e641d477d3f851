"""Train an arm from its first batch to its last epoch, and keep what each epoch came to."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from pytest_amp.errors import AmpError, unless_our_bug
from pytest_amp.lab.arm import ArmName
from pytest_amp.lab.machine.device import Device
from pytest_amp.lab.phases.parity import nudge
from pytest_amp.lab.scaling.step_watch import Replay, StepWatch
from pytest_amp.lab.training import (
    ACCURACY,
    Steps,
    Training,
    accuracy_of,
    batches_of,
    losses_of,
)
from pytest_amp.lab.watch.events import OptimizerSteps
from pytest_amp.lab.watch.losses import LossCurves
from pytest_amp.lab.watch.tensors import tensors_in
from pytest_amp.lab.workbench import Resident, Workbench
from pytest_amp.results.training import Epoch, perplexity

__tracebackhide__ = unless_our_bug

_MB = 1_000_000


def train(
    bench: Workbench, name: ArmName, replay: Replay | None = None, nudged: bool = False
) -> tuple[tuple[Epoch, ...], Replay | None]:
    """Train an arm.

    Args:
        bench: what arms are built on; its setup returns `Steps`.
        name: the arm.
        replay: the skips to repeat: for the fp32 arm, what the amp arm skipped.
        nudged: whether to begin from weights that are a rounding of the amp dtype away.

    Returns:
        Its epochs, and the skips that another arm has to repeat.
    """
    with bench.built(name) as resident:
        steps = resident.made
        assert isinstance(steps, Steps)
        watch = StepWatch(replay)
        with resident.active(), watch.installed():
            arm = _Arm(bench, resident, steps.training, watch)
            if nudged:
                arm.before_first_step = lambda: nudge(
                    watch.trained.parameters, bench.precision, bench.seed
                )
            epochs = tuple(arm.epoch(number) for number in range(1, steps.training.epochs + 1))
        return epochs, watch.replay()


class _Arm:
    """One arm in training."""

    def __init__(
        self, bench: Workbench, resident: Resident, training: Training, watch: StepWatch
    ) -> None:
        self.before_first_step: Callable[[], None] | None = None
        self._bench, self._resident, self._name = bench, resident, resident.arm.name
        self._training, self._watch = training, watch
        self._norms: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def epoch(self, number: int) -> Epoch:
        """Train one epoch, and evaluate."""
        device, curves, examples = self._bench.device, LossCurves(), _Count()
        accuracies: list[float] = []
        self._norms.clear()
        memory = _Memory(device)
        with OptimizerSteps(self._before_step):
            device.synchronize()
            began = time.perf_counter()
            for index, batch in enumerate(batches_of(self._training, number)):
                self._show(number, index)
                examples.add(batch)
                with self._resident.explained():
                    returned = self._training.step(batch)
                curves.append(losses_of(returned))
                if (accuracy := accuracy_of(returned)) is not None:
                    accuracies.append(float(accuracy))
                self._watch.next_step()
            device.synchronize()
            seconds = time.perf_counter() - began
        memory_mb, utilization = memory.peak_mb(), _utilization(device)
        train = {key: _mean(each) for key, each in curves.read().items()}
        train.setdefault("loss", next(iter(train.values())))  # of several, the first
        if accuracies:
            train[ACCURACY] = _mean(accuracies)
        optimizers = self._watch.trained.optimizers
        learning_rate = float(optimizers[0].param_groups[0]["lr"]) if optimizers else None
        val = self._evaluated(number)
        norms = [float(norm) for norm, skipped in self._norms if skipped is None or not skipped]
        return Epoch(
            epoch=number,
            train=_with_perplexity(train),
            val=_with_perplexity(val),
            learning_rate=learning_rate,
            gradient_norm=_mean(norms) if norms else None,
            epoch_duration=seconds,
            samples_per_second=examples.per(seconds),
            memory_mb=memory_mb,
            gpu_utilization=utilization,
        )

    def _show(self, epoch: int, index: int) -> None:
        total = _length(self._training.batches)
        self._bench.progress.at(
            "training", self._name, index + 1, total, f"epoch {epoch} of {self._training.epochs}"
        )

    def _before_step(self, optimizer: Optimizer, _: Mapping[str, Any]) -> None:
        if self.before_first_step is not None and self._watch.trained.parameters:
            self.before_first_step()
            self.before_first_step = None
        gradients = [
            _values(param.grad)
            for group in optimizer.param_groups
            for param in group["params"]
            if param.grad is not None
        ]
        if not gradients:
            return
        norm = torch.nn.utils.get_total_norm(gradients)
        # A fused optimizer unscales for itself, and skips for itself.
        scale, found = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
        self._norms.append((norm if scale is None else norm / scale, found))

    def _evaluated(self, epoch: int) -> dict[str, float]:
        if self._training.evaluate is None:
            return {}
        self._bench.progress.at("evaluation", self._name, epoch, self._training.epochs)
        with self._resident.explained():
            returned = self._training.evaluate()
        if not isinstance(returned, Mapping) or "loss" not in returned:
            raise AmpError(
                f"evaluate() returned {returned!r}: return a dict with a 'loss' and, if there is "
                "one, an 'accuracy'"
            )
        return {str(key): _number(str(key), value) for key, value in returned.items()}


def _number(key: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise AmpError(
            f"evaluate() returned {key!r}, which is no number: return numbers and scalar tensors"
        ) from None


def _values(gradient: torch.Tensor) -> torch.Tensor:
    detached = gradient.detach()
    return detached.coalesce().values() if detached.is_sparse else detached


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)  # which is NaN of inf and -inf, where fmean raises


def _with_perplexity(values: Mapping[str, float]) -> dict[str, float]:
    if "loss" not in values:
        return dict(values)
    return {**values, "perplexity": perplexity(values["loss"])}


def _length(batches: Any) -> int | None:
    try:
        return len(batches)
    except TypeError:  # also of a DataLoader over what has no length
        return None


class _Count:
    """Counts examples: as many as the first dimension of a batch's tensors, if they agree."""

    def __init__(self) -> None:
        self._count: int | None = 0

    def add(self, batch: Any) -> None:
        held = dict(batch) if isinstance(batch, Mapping) else batch  # a tokenizer's is no dict
        sizes = {len(each) for each in tensors_in(held) if each.dim()}
        if len(sizes) != 1:
            self._count = None
        elif self._count is not None:
            self._count += sizes.pop()

    def per(self, seconds: float) -> float | None:
        return None if self._count is None or seconds <= 0 else self._count / seconds


class _Memory:
    """On an accelerator, the peak since it was made; on a CPU, what the process has."""

    def __init__(self, device: Device) -> None:
        self._device = device
        if device.is_accelerator and hasattr(device.module, "reset_peak_memory_stats"):
            device.module.reset_peak_memory_stats(device.torch)

    def peak_mb(self) -> float | None:
        if self._device.is_accelerator:
            peak = getattr(self._device.module, "max_memory_allocated", None)
            return None if peak is None else peak(self._device.torch) / _MB
        return _resident_mb()


def _resident_mb() -> float | None:
    """Return what this process has in memory; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / _MB for line in lines if "VmRSS" in line), None)


def _utilization(device: Device) -> float | None:
    """Return how busy the driver says a GPU was lately, in percent; None if it does not say."""
    if device.type != "cuda":
        return None
    try:
        return float(torch.cuda.utilization(device.torch))
    except Exception:  # noqa: BLE001 - it needs a library of NVIDIA's, which may fail in any way
        return None
