"""Name the rules, the gates and the compared metrics, once for the whole package.

What each rule looks for is in `rules`. An error fails its test; a warning is only shown. A rule may
lower its error to a warning if no harm has been shown, but never the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple


class Code(NamedTuple):
    """A row of the table of rules.

    Attributes:
        name: the rule's name.
        severity: whether it fails a test.
        explains: the gates whose failure it may have caused.
        placeless: why its findings have no line of the user's, if by nature they have none.
    """

    name: str
    severity: Literal["error", "warning"]
    explains: tuple[str, ...] = ()
    placeless: str | None = None


CODES = {
    "AMP001": Code("nothing-measured", "error", placeless="it is about a call that is missing"),
    "AMP002": Code("not-reproducible", "warning", placeless="two whole runs are compared"),
    "AMP003": Code("arms-start-differ", "error"),
    "AMP004": Code("fp32-arm-not-fp32", "error"),
    "AMP005": Code(
        "baseline-flags", "warning", placeless="flags belong to the process, whoever sets them"
    ),
    "AMP006": Code("noisy-machine", "warning", placeless="it is about the machine"),
    "AMP007": Code("recipes-differ", "error", ("loss_diff", "memory_reduction", "speedup")),
    "AMP101": Code("amp-no-op", "error", ("speedup", "memory_reduction", "coverage")),
    "AMP102": Code("half-parameters", "error", ("loss_diff",)),
    "AMP103": Code("stale-autocast-cache", "error", ("loss_diff",)),
    "AMP104": Code("missing-gradients", "error", ("loss_diff",)),
    "AMP105": Code("backward-under-autocast", "warning", ("speedup", "loss_diff")),
    "AMP106": Code("recompute-dtype", "error", ("loss_diff",)),
    "AMP107": Code("custom-function-dtype", "error", ("loss_diff",)),
    "AMP108": Code("dtype-substituted", "warning"),
    "AMP109": Code("raises-in-one-arm", "error"),
    "AMP110": Code(
        "autocast-not-inherited", "warning", ("speedup", "coverage", "memory_reduction")
    ),
    "AMP201": Code("fp16-without-scaler", "error", ("loss_diff",)),
    "AMP202": Code("scaler-with-bf16", "warning"),
    "AMP203": Code("modified-before-unscale", "error", ("loss_diff",)),
    "AMP204": Code("scaler-protocol", "error"),
    "AMP205": Code("scheduler-on-skipped-step", "warning"),
    "AMP206": Code("stepped-on-overflow", "error", ("loss_diff",)),
    "AMP207": Code("scale-stuck", "error", ("skipped_steps", "loss_diff")),
    "AMP208": Code("scaler-bypassed", "error", ("loss_diff",)),
    "AMP209": Code("scale-changed-mid-accumulation", "error", ("loss_diff", "skipped_steps")),
    "AMP210": Code("ranks-disagree-on-skip", "error"),
    "AMP211": Code("dies-on-overflow", "error"),
    "AMP212": Code("resume-differs", "error"),
    "AMP213": Code("accumulation-differs", "error", ("loss_diff",)),
    "AMP301": Code("nonfinite-loss", "error", ("loss_diff",)),
    "AMP302": Code("gradient-underflow", "warning", ("loss_diff",)),
    "AMP303": Code("overflow-risk", "warning", ("loss_diff", "skipped_steps")),
    "AMP304": Code("gradient-mismatch", "warning", ("loss_diff",)),
    "AMP305": Code("below-noise-floor", "warning", placeless="it is about a threshold"),
    "AMP306": Code("nonfinite-state", "error", ("loss_diff",)),
    "AMP307": Code("lost-updates", "warning"),
    "AMP401": Code(
        "no-native-support", "warning", ("speedup",), placeless="it is about the device"
    ),
    "AMP402": Code("fp32-fallback", "warning", ("speedup", "coverage", "memory_reduction")),
    "AMP403": Code("cast-bound", "warning", ("speedup", "memory_reduction")),
    "AMP404": Code("host-bound", "warning", ("speedup",), placeless="it is about a whole step"),
    "AMP405": Code("slow-shapes", "warning", ("speedup",)),
    "AMP406": Code("wasted-casts", "warning", ("speedup", "memory_reduction")),
    "AMP501": Code(
        "memory-not-reduced",
        "warning",
        ("memory_reduction",),
        placeless="it is about the peak as a whole",
    ),
    "AMP502": Code("memory-growth", "error", ("memory_reduction",)),
    "AMP503": Code("cast-materialised", "warning", ("memory_reduction",)),
}

# What --amp-compare compares.
COMPARED_METRICS = ("speedup", "memory", "loss")

# The gate that each threshold belongs to.
GATES: Mapping[str, str] = {
    "min_speedup": "speedup",
    "min_memory_reduction": "memory_reduction",
    "max_loss_diff": "loss_diff",
    "max_val_loss_diff": "val_loss_diff",
    "max_accuracy_diff": "accuracy_diff",
    "min_coverage": "coverage",
    "max_skipped_steps": "skipped_steps",
}
