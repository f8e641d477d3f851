"""Draw the figures of one result as SVG, for a page whose text colour they take."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from pytest_amp import units
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import ArmRun, arm_names, tail_start

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FP32, AMP = "#4c8bd6", "#e07b39"
COLOURS = {"fp32": FP32, "amp": AMP}
_REST = "activations and workspace"
_KINDS = {
    "parameters": "#4c8bd6", "gradients": "#7fb069", "optimizer state": "#9b59b6", _REST: "#e07b39",
}  # fmt: skip
# Stands for the page's text colour, which depends on the colour scheme.
_TEXT = "#123456"
_STYLE: Any = {
    "axes.edgecolor": _TEXT, "axes.labelcolor": _TEXT, "text.color": _TEXT, "xtick.color": _TEXT,
    "ytick.color": _TEXT, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 10, "axes.titlelocation": "left", "font.size": 9, "legend.frameon": False,
    "figure.facecolor": "none", "axes.facecolor": "none", "svg.fonttype": "none",
    "font.family": "sans-serif", "text.parse_math": False, "lines.linewidth": 1.5,
}  # fmt: skip


def figures(report: AmpReport) -> dict[str, str]:
    """Return all figures of a test that there are, as SVG by title."""
    found: dict[str, str] = {}
    fp32, amp = report.arms.get("fp32"), report.arms.get("amp")
    floor, names = report.noise_floor, arm_names(report.arms)
    for key, curve in fp32.losses_by_key.items() if fp32 else ():
        of = "" if key == "loss" else f": {key}"
        other = amp.losses_by_key.get(key, ()) if amp else ()
        found[f"Loss{of}"] = drawn(
            partial(_losses, fp32=curve, amp=other, floor=floor, names=names)
        )
        apart = _differences(curve, other) if amp and amp.model is None else ()
        if any(abs(each) > 0 for each in apart):
            draw = partial(_parity, differences=apart, floor=floor, most=_most(report), names=names)
            found[f"Loss difference{of}"] = drawn(draw)
    times = {name: arm.step_times_s for name, arm in report.arms.items() if arm.step_times_s}
    if len(times) == 2:
        found["Step time"] = drawn(partial(_times, times=times, names=names))
    counted = {name: arm for name, arm in report.arms.items() if arm.peak_bytes}
    if counted:
        found["Peak memory"] = drawn(partial(_memory, arms=counted, names=names))
    if amp and amp.scales:
        found["Loss scale"] = drawn(partial(_scales, scales=amp.scales))
    return found


@contextmanager
def on_paper() -> Iterator[None]:
    """Draw in the same style as for a page, but in black on white."""
    import matplotlib

    style = {name: "black" if value == _TEXT else value for name, value in _STYLE.items()}
    style |= {"figure.facecolor": "white", "axes.facecolor": "white"}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def drawn(draw: Callable[[Axes], object]) -> str:
    """Return one figure as SVG.

    If the numbers are too large for an axis, the figure says so instead.

    Args:
        draw: draws the figure on an axes.
    """
    try:
        return _svg(draw)
    except (ValueError, ArithmeticError) as error:
        return _svg(partial(_text_instead, text=f"can't be drawn: {error}"))


def _text_instead(axes: Axes, text: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", wrap=True)


def _svg(draw: Callable[[Axes], object]) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about glyphs that only a browser's fonts have
        figure = Figure(figsize=(4.6, 2.4), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :].replace(_TEXT, "currentColor")
    return re.sub(r'\s(width|height)="[\d.]+pt"', "", svg, count=2)


def _losses(
    axes: Axes,
    fp32: Sequence[float],
    amp: Sequence[float],
    floor: float | None,
    names: Mapping[str, str],
) -> None:
    steps = range(1, len(fp32) + 1)
    if floor is not None and math.isfinite(floor):
        low, high = ([loss * (1 + sign * floor) for loss in fp32] for sign in (-1, 1))
        axes.fill_between(steps, low, high, color=FP32, alpha=0.2, linewidth=0, label="noise floor")
    axes.plot(steps, fp32, color=FP32, label=names["fp32"])
    axes.plot(range(1, len(amp) + 1), amp, color=AMP, linestyle="--", label=names["amp"])
    axes.set_xlabel("step")
    whole_numbers(axes)
    axes.legend()


def _parity(
    axes: Axes,
    differences: Sequence[float],
    floor: float | None,
    most: float | None,
    names: Mapping[str, str],
) -> None:
    """Draw the difference of the losses, the noise floor, and what the gate allows."""
    seen, steps = max(abs(each) for each in differences if each == each), len(differences)
    axes.axhline(0, color=FP32, label=names["fp32"])
    axes.plot(range(1, steps + 1), differences, ".-", color=AMP, label=names["amp"])
    if floor is not None and math.isfinite(floor):
        seen = max(seen, floor)
        axes.axhspan(-floor, floor, color=FP32, alpha=0.2, linewidth=0, label="noise floor")
    if most is not None and most < 3 * seen:
        axes.axhline(most, color=_TEXT, linestyle=":", label="allowed")
        axes.axhline(-most, color=_TEXT, linestyle=":")
    start = tail_start(steps) + 0.5
    axes.axvspan(start, steps + 0.5, color=_TEXT, alpha=0.1, linewidth=0, label="compared")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    axes.set_xlabel("step")
    whole_numbers(axes)
    axes.figure.legend(loc="outside upper center", ncols=5, fontsize=8)


def _differences(fp32: Sequence[float], amp: Sequence[float]) -> list[float]:
    """Return (amp - fp32) / abs(fp32) for each step; NaN if that is not finite."""
    found = [(b - a) / abs(a) if a else math.nan for a, b in zip(fp32, amp, strict=False)]
    return [each if math.isfinite(each) else math.nan for each in found]


def _most(report: AmpReport) -> float | None:
    return next((gate.threshold for gate in report.gates if gate.name == "loss_diff"), None)


def _times(axes: Axes, times: Mapping[str, Sequence[float]], names: Mapping[str, str]) -> None:
    longest = max(max(each) for each in times.values())
    scale, unit = next(
        (pair for pair in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")) if longest >= pair[0]),
        (1e-9, "ns"),
    )
    for place, (name, colour) in enumerate((("amp", AMP), ("fp32", FP32))):
        values = [each / scale for each in times[name]]
        axes.boxplot(
            [values], positions=[place], orientation="horizontal", widths=0.5, showfliers=False,
            medianprops={"color": colour, "linewidth": 2}, boxprops={"color": colour},
            whiskerprops={"color": colour}, capprops={"color": colour},
        )  # fmt: skip
        spread = [place + 0.12 * (-1) ** number for number in range(len(values))]
        axes.plot(values, spread, ".", color=colour, alpha=0.7)
    axes.set_yticks([0, 1], [names["amp"], names["fp32"]])
    axes.set_xlabel(f"{unit} a step, by block")


def _memory(axes: Axes, arms: Mapping[str, ArmRun], names: Mapping[str, str]) -> None:
    """Draw each arm's peak, and the part of it that is held from step to step."""
    there = [name for name in ("amp", "fp32") if name in arms]
    shown = [names[name] for name in there]
    peaks = [arms[name].peak_bytes or 0 for name in there]
    scale, unit = in_bytes(max(peaks))
    lefts = [0.0] * len(there)
    for kind, colour in _KINDS.items():
        parts = [float(min(arms[name].held_bytes.get(kind, 0), peak))
                 for name, peak in zip(there, peaks, strict=True)]  # fmt: skip
        if kind == _REST:
            parts = [max(0.0, peak - left) for peak, left in zip(peaks, lefts, strict=True)]
        if any(parts):
            axes.barh(shown, [part / scale for part in parts], color=colour, label=kind,
                      left=[left / scale for left in lefts])  # fmt: skip
        lefts = [left + part for left, part in zip(lefts, parts, strict=True)]
    for place, peak in enumerate(peaks):
        axes.annotate(units.size(peak), (peak / scale, place), xytext=(4, 0),
                      textcoords="offset points", va="center")  # fmt: skip
    axes.margins(x=0.2)
    axes.set_xlabel(f"{unit} above the level before the build")
    axes.figure.legend(loc="outside upper center", ncols=2, fontsize=8)


def _scales(axes: Axes, scales: Sequence[float]) -> None:
    axes.step(range(1, len(scales) + 1), scales, color=AMP, where="mid")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: units.power(value))
    axes.yaxis.set_minor_formatter(lambda *_: "")
    axes.set_xlabel("update")
    whole_numbers(axes)


def whole_numbers(axes: Axes) -> None:
    """Mark whole numbers alone on the horizontal axis."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def in_bytes(largest: float) -> tuple[float, str]:
    """Return how many bytes the unit has that suits such sizes, and its name."""
    return next(
        (pair for pair in ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"))
         if largest >= pair[0]),
        (1.0, "bytes"),
    )  # fmt: skip
