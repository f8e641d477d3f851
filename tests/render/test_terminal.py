# ruff: noqa: E501 -- the expected text is as wide as the terminal that it is for
"""What a reader of a CI log sees: the summary's whole text, and what holds for any report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_amp.plugin.live_line import status_line
from pytest_amp.render.terminal import summary
from pytest_amp.render.text import Line, ascii_only, cut, shorten, text_of
from pytest_amp.results.report import AmpReport
from pytest_amp.results.values import (
    ArmRun,
    Environment,
    Estimate,
    Failure,
    Finding,
    Gate,
    GateVerdict,
    Setting,
)

MIB = 2**20
H100 = Environment(
    device="NVIDIA H100 80GB HBM3",
    device_type="cuda",
    torch="2.9.1",
    cuda="12.8",
    cudnn="9.10.2",
    driver="570.86.15",
    dtype="float16",
    native_support=True,
    flags={
        "float32_matmul_precision": "highest",
        "cuda.matmul.allow_tf32": False,
        "cudnn.allow_tf32": True,
        "cudnn.conv.fp32_precision": "tf32",
        "cudnn.benchmark": False,
        "deterministic_algorithms": False,
        "num_threads": 16,
    },
)
XEON = Environment(
    device="Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz",
    device_type="cpu",
    torch="2.9.1+cpu",
    cuda=None,
    cudnn=None,
    driver=None,
    dtype="bfloat16",
    native_support=False,
    flags={"float32_matmul_precision": "highest", "cudnn.benchmark": False, "num_threads": 2},
)


def gate(name: str, verdict: GateVerdict, reason: str, threshold: float | None = None) -> Gate:
    return Gate(name, threshold, None if threshold is None else 1.0, None, None, verdict, reason)


def arms(
    seconds: tuple[float, float],
    peaks: tuple[int, int],
    losses: dict[str, tuple[float, ...]] | None = None,
    scales: tuple[float, ...] = (),
    skipped: int = 0,
) -> dict[str, ArmRun]:
    losses = losses or {"loss": (2.3, 2.1)}
    return {
        "fp32": ArmRun((seconds[0],), losses, peaks[0], 2 * peaks[0]),
        "amp": ArmRun((seconds[1],), losses, peaks[1], 2 * peaks[1], {}, scales, skipped),
    }


PASSING = AmpReport(
    nodeid="tests/vision/test_resnet.py::test_resnet[channels_last]",
    verdict="pass",
    started="2025-11-23T10:00:00+00:00",
    duration_s=12.8,
    environment=H100,
    settings={
        "min_speedup": Setting({"cuda": 1.3, "*H100*": 1.5}, "marker"),
        "max_loss_diff": Setting(0.02, "default"),
        "steps": Setting(40, "cli"),
    },
    gates=(
        gate("speedup", "pass", "1.52x [1.48, 1.55] is at least 1.50x", 1.5),
        gate("memory_reduction", "not_gated", "44% (412 MiB -> 230 MiB)"),
        gate("loss_diff", "pass", "0.03% (2.1 -> 2.1006) is at most 2.0%", 0.02),
    ),
    arms=arms((0.0168, 0.0111), (412 * MIB, 230 * MIB), None, (2.0**16, 2.0**15, 2.0**15), 1),
    speedup=Estimate((1.52,) * 10, 1.48, 1.55, 8),
    loss_diff=0.0003,
    noise_floor=0.0011,
    coverage=0.98,
    findings=(
        Finding(
            "AMP402", "fp32-fallback", "warning", "18% of the FLOPs stay in float32",
            "decoder.norm", "model.py:88", suppressed="norms stay in fp32",
        ),
    ),
    phases_s={"parity": 3.2, "inspection": 1.1, "timing": 8.1},
)  # fmt: skip
INCONCLUSIVE = AmpReport(
    nodeid="tests/vision/test_resnet.py::TestAugmented::test_resnet_with_mixup",
    verdict="inconclusive",
    started="2025-11-23T10:00:20+00:00",
    environment=replace(H100, dtype="bfloat16"),
    gates=(
        gate(
            "speedup", "inconclusive",
            "1.31x [1.24, 1.39] can't be told from 1.30x within max_time=30 s; raise max_time, "
            "quieten the machine, or set a threshold further from the truth",
            1.3,
        ),
    ),
    arms=arms((0.0168, 0.0128), (10_650 * MIB, 7383 * MIB)),
    speedup=Estimate((1.31,) * 76, 1.24, 1.39, 8),
    loss_diff=0.0141,
    coverage=0.87,
)  # fmt: skip
GAN = AmpReport(
    nodeid="tests/test_gan.py::test_gan",
    verdict="fail",
    started="2025-11-23T10:01:00+00:00",
    environment=H100,
    gates=(
        gate("speedup", "fail", "0.93x [0.91, 0.95] is below 1.30x", 1.3),
        gate("loss_diff", "fail", "31% of 'generator' (1 -> 1.31) is beyond 2.0%", 0.02),
    ),
    arms=arms(
        (1.02, 1.10), (230 * MIB, 241 * MIB),
        {"critic": (1.0, 0.5), "generator": (2.0, 1.31)}, (2.0**16,) * 3, 12,
    ),
    speedup=Estimate((0.93,) * 10, 0.91, 0.95, 1),
    loss_diff=0.31,
    coverage=0.41,
    findings=(
        Finding("AMP402", "fp32-fallback", "warning", "59% of the FLOPs ran in float32"),
        Finding(
            "AMP203", "modified-before-unscale", "error",
            "gradients are clipped by norm while they are still multiplied by the loss scale; "
            "call scaler.unscale_(optimizer) before clip_grad_norm_",
            location="train.py:88", confirmed=True,
        ),
    ),
    notes=("both arms did not fit in memory together",),
)  # fmt: skip
NONFINITE = AmpReport(
    nodeid="tests/test_diffusion.py::test_unet[attention_resolution_32-ema-cosine_schedule]",
    verdict="fail",
    started="2025-11-23T10:02:00+00:00",
    attempt=2,
    environment=H100,
    gates=(gate("loss_diff", "fail", "the amp loss is not finite from step 7 on", 0.02),),
    arms=arms((934e-6, 731e-6), (230 * MIB, 141 * MIB), {"loss": (1.0, math.nan)}, (4.0,)),
    speedup=Estimate((1.28,), None, None, 20),
    loss_diff=math.nan,
    coverage=1.0,
)
SLOW_CPU = AmpReport(
    nodeid="tests/test_cpu.py::test_mlp[cpu]",
    verdict="fail",
    started="2025-11-23T10:03:00+00:00",
    environment=XEON,
    gates=(gate("speedup", "fail", "0.36x [0.35, 0.37] is below 1.00x", 1.0),),
    arms=arms((834e-6, 2.31e-3), (12 * MIB, 11 * MIB)),
    speedup=Estimate((0.361,) * 9, 0.35, 0.37, 20),
    loss_diff=0.002,
    coverage=1.0,
)
ERROR = AmpReport(
    nodeid="tests/test_cpu.py::test_lstm",
    verdict="error",
    started="2025-11-23T10:04:00+00:00",
    error=Failure(
        "amp", "parity", 1, "RuntimeError", '"mkldnn_rnn_layer" not\nimplemented for BFloat16'
    ),
)
SKIPPED = AmpReport(
    nodeid="tests/test_cuda.py::test_vit",
    verdict="skipped",
    started="2025-11-23T10:05:00+00:00",
    skip_reason="CUDA is not available: torch 2.9.1+cpu was built without it",
)
EVERY_KIND = (PASSING, INCONCLUSIVE, GAN, NONFINITE, SLOW_CPU, ERROR, SKIPPED)


def rendered(reports: Sequence[AmpReport], width: int, verbosity: int = 0) -> str:
    return "\n".join(map(text_of, summary(reports, width, verbosity, {"min_speedup": 3})))


def where(lines: Sequence[Line], text: str) -> set[tuple[str, ...]]:
    """The markup of each span with that text."""
    return {span.markup for line in lines for span in line if span.text == text}


def test_at_80_columns_the_figures_stand_below_the_name() -> None:
    expected = """\
NVIDIA H100 80GB HBM3, float16, bfloat16, torch 2.9.1, CUDA 12.8, cuDNN 9.10.2,
  driver 570.86.15, matmul precision highest, tf32 matmul off, tf32 cudnn on,
  cudnn.benchmark off
Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz, bfloat16 (no native support),
  torch 2.9.1+cpu, matmul precision highest, threads 2
3 tests keep their own min_speedup

test                                            speedup             verdict
            step time            memory  loss diff  coverage  scaler
--------------------------------------------------------------------------------
tests/vision/test_resnet.py
  test_resnet[channels_last]                    1.52x [1.48, 1.55]  PASS
      16.8 -> 11.1 ms    412 -> 230 MiB      0.03%       98%  2^15, 1 skip
  TestAugmented::test_resnet_with_mixup         1.31x [1.24, 1.39]  INCONCLUSIVE
      16.8 -> 12.8 ms  10.4 -> 7.21 GiB       1.4%       87%  -
tests/test_gan.py
  test_gan                                      0.93x [0.91, 0.95]  FAIL
       1.02 -> 1.10 s    230 -> 241 MiB        31%       41%  2^16, 12 skips
tests/test_diffusion.py
  test_unet[attention_...schedule] (attempt 2)  1.28x (1 pair)      FAIL
        934 -> 731 us    230 -> 141 MiB        nan      100%  2^2
tests/test_cpu.py
  test_mlp[cpu]                                 0.36x [0.35, 0.37]  FAIL
    834 us -> 2.31 ms  12.0 -> 11.0 MiB      0.20%      100%  -
  test_lstm                                                         ERROR
    amp arm, parity, step 1, RuntimeError: "mkldnn_rnn_layer" not implemented...
tests/test_cuda.py
  test_vit                                                          SKIPPED
    CUDA is not available: torch 2.9.1+cpu was built without it

INCONCLUSIVE  tests/vision/test_resnet.py::TestAugmented::test_resnet_with_mixup
  no answer   speedup: 1.31x [1.24, 1.39] can't be told from 1.30x within
              max_time=30 s; raise max_time, quieten the machine, or set a
              threshold further from the truth

FAIL  tests/test_gan.py::test_gan
  FAILED      speedup: 0.93x [0.91, 0.95] is below 1.30x
  FAILED      loss_diff: 31% of 'generator' (1 -> 1.31) is beyond 2.0%
  error       AMP203 modified-before-unscale (train.py:88): gradients are
              clipped by norm while they are still multiplied by the loss scale;
              call scaler.unscale_(optimizer) before clip_grad_norm_ (confirmed
              by a rerun)
  warning     AMP402 fp32-fallback: 59% of the FLOPs ran in float32
  note        both arms did not fit in memory together

FAIL  test_unet[attention_resolution_32-ema-cosine_schedule]
  FAILED      loss_diff: the amp loss is not finite from step 7 on

FAIL  tests/test_cpu.py::test_mlp[cpu]
  FAILED      speedup: 0.36x [0.35, 0.37] is below 1.00x

1 finding suppressed; -v shows them and why
1 test without an answer; --amp-strict would fail it
1 passed, 3 failed, 1 error, 1 inconclusive, 1 skipped"""
    assert rendered(EVERY_KIND, 80) == expected


def test_at_140_columns_a_test_is_one_line() -> None:
    expected = """\
NVIDIA H100 80GB HBM3, float16, bfloat16, torch 2.9.1, CUDA 12.8, cuDNN 9.10.2, driver 570.86.15, matmul precision highest, tf32 matmul off,
  tf32 cudnn on, cudnn.benchmark off
Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz, bfloat16 (no native support), torch 2.9.1+cpu, matmul precision highest, threads 2
3 tests keep their own min_speedup

test                                      step time  speedup                       memory  loss diff  coverage  scaler          verdict
--------------------------------------------------------------------------------------------------------------------------------------------
tests/vision/test_resnet.py
  test_resnet[channels_last]        16.8 -> 11.1 ms  1.52x [1.48, 1.55]    412 -> 230 MiB      0.03%       98%  2^15, 1 skip    PASS
  test_resnet_with_mixup            16.8 -> 12.8 ms  1.31x [1.24, 1.39]  10.4 -> 7.21 GiB       1.4%       87%  -               INCONCLUSIVE
tests/test_gan.py
  test_gan                           1.02 -> 1.10 s  0.93x [0.91, 0.95]    230 -> 241 MiB        31%       41%  2^16, 12 skips  FAIL
tests/test_diffusion.py
  test_unet[...dule] (attempt 2)      934 -> 731 us  1.28x (1 pair)        230 -> 141 MiB        nan      100%  2^2             FAIL
tests/test_cpu.py
  test_mlp[cpu]                   834 us -> 2.31 ms  0.36x [0.35, 0.37]  12.0 -> 11.0 MiB      0.20%      100%  -               FAIL
  test_lstm                       amp arm, parity, step 1, RuntimeError: "mkldnn_rnn_layer" not implemented for BFloat16        ERROR
tests/test_cuda.py
  test_vit                        CUDA is not available: torch 2.9.1+cpu was built without it                                   SKIPPED

INCONCLUSIVE  tests/vision/test_resnet.py::TestAugmented::test_resnet_with_mixup
  no answer   speedup: 1.31x [1.24, 1.39] can't be told from 1.30x within max_time=30 s; raise max_time, quieten the machine, or set a
              threshold further from the truth

FAIL  tests/test_gan.py::test_gan
  FAILED      speedup: 0.93x [0.91, 0.95] is below 1.30x
  FAILED      loss_diff: 31% of 'generator' (1 -> 1.31) is beyond 2.0%
  error       AMP203 modified-before-unscale (train.py:88): gradients are clipped by norm while they are still multiplied by the loss scale;
              call scaler.unscale_(optimizer) before clip_grad_norm_ (confirmed by a rerun)
  warning     AMP402 fp32-fallback: 59% of the FLOPs ran in float32
  note        both arms did not fit in memory together

FAIL  tests/test_diffusion.py::test_unet[attention_resolution_32-ema-cosine_schedule]
  FAILED      loss_diff: the amp loss is not finite from step 7 on

FAIL  tests/test_cpu.py::test_mlp[cpu]
  FAILED      speedup: 0.36x [0.35, 0.37] is below 1.00x

1 finding suppressed; -v shows them and why
1 test without an answer; --amp-strict would fail it
1 passed, 3 failed, 1 error, 1 inconclusive, 1 skipped"""
    assert rendered(EVERY_KIND, 140) == expected


def test_verbose_tells_how_it_was_measured() -> None:
    expected = """\
NVIDIA H100 80GB HBM3, float16, torch 2.9.1, CUDA 12.8, cuDNN 9.10.2, driver 570.86.15,
  float32_matmul_precision highest, cuda.matmul.allow_tf32 off, cudnn.allow_tf32 on,
  cudnn.conv.fp32_precision tf32, cudnn.benchmark off, deterministic_algorithms off, num_threads 16
3 tests keep their own min_speedup

test                                       speedup             verdict
          step time          memory  loss diff  coverage  scaler
----------------------------------------------------------------------
tests/vision/test_resnet.py
  test_resnet[channels_last]               1.52x [1.48, 1.55]  PASS
    16.8 -> 11.1 ms  412 -> 230 MiB      0.03%       98%  2^15, 1 skip
tests/test_cpu.py
  test_lstm                                                    ERROR
    amp arm, parity, step 1, RuntimeError: "mkldnn_rnn_layer" not implemented for BFloat16

PASS  tests/vision/test_resnet.py::test_resnet[channels_last]
  ok          speedup: 1.52x [1.48, 1.55] is at least 1.50x
  not gated   memory_reduction: 44% (412 MiB -> 230 MiB)
  ok          loss_diff: 0.03% (2.1 -> 2.1006) is at most 2.0%
  suppressed  AMP402 fp32-fallback in decoder.norm (model.py:88): 18% of the FLOPs stay in float32
              [norms stay in fp32]
  device      NVIDIA H100 80GB HBM3, float16
  noise       fp32 drifts 0.11% from itself under rounding
  timing      10 pairs of blocks of 8 steps
  reserved    824 -> 460 MiB
  phases      parity 3.20 s, inspection 1.10 s, timing 8.10 s, 12.8 s in all
  settings    min_speedup cuda=1.3,*H100*=1.5 (marker), steps 40 (cli)

ERROR  tests/test_cpu.py::test_lstm
  reason      amp arm, parity, step 1, RuntimeError: "mkldnn_rnn_layer" not implemented for BFloat16

1 finding suppressed
1 passed, 1 error"""
    assert rendered([PASSING, ERROR], 100, verbosity=1) == expected


def test_quiet_names_what_is_not_a_pass() -> None:
    expected = """\
INCONCLUSIVE tests/vision/test_resnet.py::TestAugmented::test_resnet_with_mixup - speedup: 1.31x ...
FAIL tests/test_gan.py::test_gan - speedup: 0.93x [0.91, 0.95] is below 1.30x
FAIL tests/test_diffusion.py::test_unet[attention_resolution_32-ema-cosine_schedule] - loss_diff:...
FAIL tests/test_cpu.py::test_mlp[cpu] - speedup: 0.36x [0.35, 0.37] is below 1.00x
ERROR tests/test_cpu.py::test_lstm - amp arm, parity, step 1, RuntimeError: "mkldnn_rnn_layer" no...
SKIPPED tests/test_cuda.py::test_vit - CUDA is not available: torch 2.9.1+cpu was built without it
1 passed, 3 failed, 1 error, 1 inconclusive, 1 skipped"""
    assert rendered(EVERY_KIND, 100, verbosity=-1) == expected


def test_nothing_measured_is_nothing_said() -> None:
    assert summary([], 80, 0, {"min_speedup": 3}) == []


def test_colours_say_what_the_words_say() -> None:
    lines = summary(EVERY_KIND, 140, 0)
    assert where(lines, "PASS") == {("green",)}
    assert where(lines, "FAIL") == where(lines, "ERROR") == {("red", "bold")}
    assert where(lines, "INCONCLUSIVE") == {("yellow", "bold")}
    assert where(lines, "0.93x [0.91, 0.95]") == {("red", "bold")}  # the gate that failed
    assert where(lines, "1.31x [1.24, 1.39]") == {("yellow", "bold")}
    assert where(lines, "1.52x [1.48, 1.55]") == {()}


def test_under_strict_a_missing_answer_is_red() -> None:
    strict = {"strict": Setting(["inconclusive", "unmeasured"], "cli")}
    lines = summary([replace(INCONCLUSIVE, settings=strict)], 80, 0)
    assert where(lines, "INCONCLUSIVE") == {("red", "bold")}
    assert not any("would fail" in text_of(line) for line in lines)

    unmeasured = Gate("memory_reduction", 0.25, None, None, None, "not_gated", "no counter")
    report = replace(PASSING, gates=(unmeasured,), settings=strict)
    assert rendered([report], 80, -1) == (
        "NO ANSWER tests/vision/test_resnet.py::test_resnet[channels_last] - memory_re...\n"
        "1 without an answer"
    )


def test_an_arm_that_never_ran_leaves_its_figures_open() -> None:
    report = replace(PASSING, arms={"amp": PASSING.arms["amp"]}, speedup=None, loss_diff=None)
    assert "- -> 11.1 ms" in rendered([report], 140)


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (70, "tests/vision/test_resnet.py::TestAugmented::test_resnet[nchw-a/b::c]"),
        (65, ".../test_resnet.py::TestAugmented::test_resnet[nchw-a/b::c]"),
        (50, "TestAugmented::test_resnet[nchw-a/b::c]"),
        (38, "...::test_resnet[nchw-a/b::c]"),
        (26, "test_resnet[nchw-a/b::c]"),
        (20, "test_resnet[...b::c]"),
    ],
)
def test_a_long_nodeid_keeps_its_function_and_parameters(width: int, shown: str) -> None:
    nodeid = "tests/vision/test_resnet.py::TestAugmented::test_resnet[nchw-a/b::c]"
    assert len(shown) <= width
    assert shorten(nodeid, width) == shown


def test_what_no_terminal_should_see_is_escaped() -> None:
    hostile = "tests/a.py::test_x[a\nb\x1b[31m<script>\N{ROCKET}\udc80]"
    text = rendered([replace(PASSING, nodeid=hostile)], 140, 1)
    assert r"test_x[a\nb\x1b[31m<script>\U0001f680\udc80]" in text
    assert text.replace("\n", "").isprintable()


def test_the_live_line() -> None:
    nodeid = "tests/vision/test_resnet.py::test_resnet[channels_last]"
    assert status_line(nodeid, "parity", "amp", 12, 20, None, 80) == (
        "tests/vision/test_resnet.py::test_resnet[channels_last]  parity, amp, 12 of 20"
    )
    assert status_line(nodeid, "timing", None, 7, None, "1.52x [1.48, 1.55]", 70) == (
        "test_resnet[channels_last]  timing, 7, 1.52x [1.48, 1.55]"
    )
    assert status_line(nodeid, None, None, None, None, "", 40) == "test_resnet[channels_last]"


# -- for any report ----------------------------------------------------------------------------

words = st.text(max_size=120)
number = st.floats(width=64)
known = st.none() | number
verdicts: st.SearchStrategy[GateVerdict] = st.sampled_from(
    ["pass", "fail", "inconclusive", "not_gated"]
)
arm_runs = st.builds(
    ArmRun,
    step_times_s=st.lists(number, max_size=3).map(tuple),
    losses_by_key=st.dictionaries(words, st.lists(number, max_size=3).map(tuple), max_size=2),
    peak_bytes=st.none() | st.integers(0, 2**70),
    scales=st.lists(number, max_size=2).map(tuple),
    skipped_steps=st.integers(0, 10**30),
)
any_report = st.builds(
    AmpReport,
    nodeid=words | st.builds("tests/{}::{}[{}]".format, words, words, words),
    verdict=st.sampled_from(["pass", "fail", "inconclusive", "skipped", "error"]),
    started=st.just(""),
    attempt=st.integers(1, 10**9),
    rank=st.none() | st.integers(0, 10**9),
    skip_reason=st.none() | words,
    error=st.none() | st.builds(Failure, words, words, st.none() | st.integers(), words, words),
    environment=st.none()
    | st.builds(
        Environment, words, words, words, words, words, st.none() | words, words, st.booleans(),
        st.dictionaries(words | st.just("cudnn.benchmark"), st.booleans() | words, max_size=2),
    ),
    settings=st.dictionaries(words, st.builds(Setting, number | words, words), max_size=2),
    gates=st.lists(
        st.builds(
            Gate, words | st.just("speedup"), known, known, known, known, verdicts, words
        ),
        max_size=2,
    ).map(tuple),
    arms=st.just({}) | st.fixed_dictionaries({"fp32": arm_runs, "amp": arm_runs}),
    speedup=st.none()
    | st.builds(
        Estimate, st.lists(number, min_size=1, max_size=3).map(tuple), known, known,
        st.integers(1, 10**30),
    ),
    loss_diff=known,
    noise_floor=known,
    coverage=known,
    findings=st.lists(
        st.builds(
            Finding, words, words, st.sampled_from(["error", "warning"]), words,
            module=st.none() | words, confirmed=st.booleans(), suppressed=st.none() | words,
        ),
        max_size=2,
    ).map(tuple),
    notes=st.lists(words, max_size=1).map(tuple),
)  # fmt: skip


@settings(deadline=None)
@given(
    st.lists(any_report, max_size=3),
    st.integers(60, 200),
    st.sampled_from([-1, 0, 1]),
    st.dictionaries(words, st.integers(1, 10**6), max_size=1),
)
def test_no_line_is_wider_than_it_may_be(
    reports: list[AmpReport], width: int, verbosity: int, hidden: dict[str, int]
) -> None:
    for line in map(text_of, summary(reports, width, verbosity, hidden)):
        assert len(line) <= width
        assert line == line.rstrip()
        assert line.isascii()
        assert line.isprintable()


@given(st.integers(60, 200), st.permutations(EVERY_KIND))
def test_figures_stand_below_their_title(width: int, reports: list[AmpReport]) -> None:
    lines = summary(reports, width, 0)
    blank = [number for number, line in enumerate(lines) if not line]
    table = lines[blank[0] : blank[1]]

    def edges(*texts: str, right: bool) -> set[int]:
        return {
            sum(len(span.text) for span in line[: number + right])
            for line in table
            for number, span in enumerate(line)
            if span.text in texts
        }

    for left in (
        ("verdict", "PASS", "INCONCLUSIVE", "FAIL", "ERROR", "SKIPPED"),
        ("speedup", "1.52x [1.48, 1.55]", "1.31x [1.24, 1.39]", "1.28x (1 pair)"),
        ("scaler", "2^15, 1 skip", "2^16, 12 skips", "2^2"),
    ):
        assert len(edges(*left, right=False)) == 1
    for right in (
        ("step time", "16.8 -> 11.1 ms", "1.02 -> 1.10 s", "834 us -> 2.31 ms"),
        ("memory", "412 -> 230 MiB", "10.4 -> 7.21 GiB", "12.0 -> 11.0 MiB"),
        ("loss diff", "0.03%", "1.4%", "31%", "nan", "0.20%"),
        ("coverage", "98%", "87%", "41%", "100%"),
    ):
        assert len(edges(*right, right=True)) == 1


@given(words, st.integers(0, 120))
def test_shortening_keeps_to_the_width(text: str, width: int) -> None:
    assert len(shorten(text, width)) <= width
    assert len(cut(ascii_only(text), width)) <= width
    assert len(status_line(text, text, None, 1, None, text, width)) <= width


def test_a_difference_that_only_loss_atol_accepts_is_shown_as_such() -> None:
    gate = Gate("loss_diff", 0.02, 150.0, None, None, "pass", "within loss_atol=0.005")
    near_zero = replace(PASSING, loss_diff=150.0, gates=(gate,))
    text = "\n".join(text_of(line) for line in summary([near_zero], 140, 0))
    assert "<atol" in text
    assert "150" not in text


def test_errors_are_told_before_warnings_and_each_by_its_code() -> None:
    found = [
        Finding("AMP402", "fp32-fallback", "warning", "of speed"),
        Finding("AMP301", "nonfinite-loss", "error", "of a loss"),
        Finding("AMP105", "backward-under-autocast", "warning", "of a region"),
        Finding("AMP204", "scaler-protocol", "error", "of a scaler"),
    ]
    report = AmpReport("test_it.py::test_step", "fail", "2026-01-31", findings=tuple(found))
    text = "\n".join(text_of(line) for line in summary([report], 100, 0))
    places = [text.index(f"{code} ") for code in ("AMP204", "AMP301", "AMP105", "AMP402")]
    assert places == sorted(places)


def test_a_finding_without_a_line_says_why() -> None:
    reason = "it is about the machine"
    found = Finding("AMP006", "noisy-machine", "warning", "pairs spread", no_location=reason)
    report = AmpReport("test_it.py::test_step", "pass", "2026-01-31", findings=(found,))
    text = "\n".join(text_of(line) for line in summary([report], 100, 0))
    assert f"AMP006 noisy-machine: pairs spread (no line: {reason})" in text
