"""The rules' stable codes, names and severities. What each looks for is in `judge.rules`.

An error fails its test, a warning is shown. `judge.rules` may lower an error to a warning where the
harm is not shown, and never the other way round.
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class Code(NamedTuple):
    """A row of the table."""

    name: str
    severity: Literal["error", "warning"]


CODES = {
    "AMP001": Code("nothing-measured", "error"),
    "AMP002": Code("not-reproducible", "warning"),
    "AMP003": Code("arms-start-differ", "error"),
    "AMP004": Code("fp32-arm-not-fp32", "error"),
    "AMP005": Code("baseline-flags", "warning"),
    "AMP006": Code("noisy-machine", "warning"),
    "AMP101": Code("amp-no-op", "error"),
    "AMP102": Code("half-parameters", "error"),
    "AMP103": Code("stale-autocast-cache", "error"),
    "AMP104": Code("missing-gradients", "error"),
    "AMP105": Code("backward-under-autocast", "warning"),
    "AMP106": Code("recompute-dtype", "error"),
    "AMP107": Code("custom-function-dtype", "error"),
    "AMP108": Code("dtype-substituted", "warning"),
    "AMP201": Code("fp16-without-scaler", "error"),
    "AMP202": Code("scaler-with-bf16", "warning"),
    "AMP203": Code("modified-before-unscale", "error"),
    "AMP204": Code("scaler-protocol", "error"),
    "AMP205": Code("scheduler-on-skipped-step", "warning"),
    "AMP206": Code("stepped-on-overflow", "error"),
    "AMP207": Code("scale-stuck", "error"),
    "AMP208": Code("scaler-bypassed", "error"),
    "AMP209": Code("scale-changed-mid-accumulation", "error"),
    "AMP210": Code("ranks-disagree-on-skip", "error"),
    "AMP301": Code("nonfinite-loss", "error"),
    "AMP302": Code("gradient-underflow", "warning"),
    "AMP303": Code("overflow-risk", "warning"),
    "AMP304": Code("gradient-mismatch", "warning"),
    "AMP305": Code("below-noise-floor", "warning"),
    "AMP401": Code("no-native-support", "warning"),
    "AMP402": Code("fp32-fallback", "warning"),
    "AMP403": Code("cast-bound", "warning"),
    "AMP404": Code("host-bound", "warning"),
    "AMP405": Code("slow-shapes", "warning"),
    "AMP501": Code("memory-not-reduced", "warning"),
    "AMP502": Code("memory-growth", "error"),
    "AMP503": Code("cast-materialised", "warning"),
}
