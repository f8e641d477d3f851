"""What each epoch of a whole training came to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

# Beyond this, the perplexity of a loss is beyond every use, and later beyond a float.
_LARGEST_LOSS = 100.0
VALUES = ("loss", "perplexity", "accuracy")


@dataclass(frozen=True)
class Epoch:
    """One epoch of one arm.

    Attributes:
        epoch (int): its number, from 1.
        train (Mapping[str, float]): the mean loss over its batches, the perplexity of that, and the
            accuracy if the step returned one.
        val (Mapping[str, float]): the same of the evaluation behind it; empty without one.
        learning_rate (float | None): of the first group of the first optimizer, at the end.
        gradient_norm (float | None): the mean over its steps of the 2-norm of all gradients, as the
            optimizers got them.
        epoch_duration (float): how long training took, in seconds, without the evaluation.
        samples_per_second (float | None): examples per second; None if a batch does not tell how
            many it has.
        memory_mb (float | None): on an accelerator, the peak of allocated memory; on a CPU, what
            the process has in memory at the end. In MB of 1,000,000 bytes.
        gpu_utilization (float | None): in percent, as the driver says at the end; None if it does
            not.
    """

    epoch: int
    train: Mapping[str, float] = field(default_factory=dict)
    val: Mapping[str, float] = field(default_factory=dict)
    learning_rate: float | None = None
    gradient_norm: float | None = None
    epoch_duration: float = 0.0
    samples_per_second: float | None = None
    memory_mb: float | None = None
    gpu_utilization: float | None = None

    def row(self) -> dict[str, float | None]:
        """Return it as a row of the training's table, by the names of its columns."""
        return {
            "epoch": self.epoch,
            **{f"train/{name}": self.train.get(name) for name in VALUES},
            **{f"val/{name}": self.val.get(name) for name in VALUES},
            "learning_rate": self.learning_rate,
            "gradient_norm": self.gradient_norm,
            "epoch_duration": self.epoch_duration,
            "samples_per_second": self.samples_per_second,
            "system/memory_mb": self.memory_mb,
            "system/gpu_utilization": self.gpu_utilization,
        }


def perplexity(loss: float) -> float:
    """Return the perplexity of a cross entropy in nats, which is at most that of 100 nats."""
    return math.nan if math.isnan(loss) else math.exp(min(loss, _LARGEST_LOSS))


def best(epochs: tuple[Epoch, ...]) -> int | None:
    """Return the epoch with the lowest validation loss, or training loss if nothing was evaluated.

    None if no loss is finite.
    """

    def loss(each: Epoch) -> float:
        return (each.val or each.train).get("loss", math.nan)

    finite = [each for each in epochs if math.isfinite(loss(each))]
    return min(finite, key=loss).epoch if finite else None
