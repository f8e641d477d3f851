"""Each rule on records: what it speaks of, what it leaves alone, and what silences it."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from pytest_amp.codes import CODES
from pytest_amp.judge.case import Case
from pytest_amp.observations import FRAMEWORKS, Operators, OpRow, Origin, Start
from pytest_amp.results.values import Finding
from pytest_amp.rules import registry
from pytest_amp.rules.base import NeverCalled
from tests.helpers.observations import (
    CURVE,
    FLAGS,
    IN_BF16,
    IN_FP32,
    START,
    findings,
    losses,
    scaled,
    seen,
    timing,
)  # fmt: skip

NAN, INF = math.nan, math.inf
OTHER_WEIGHTS = replace(START, parameters=("torch.float32[4]:8",))
OTHER_INPUTS = replace(START, inputs=("torch.float32[2, 4]:8",))
UNSEEN_INPUTS = replace(START, inputs=None)
NOTHING_SEEN = Start()


def operators(arm: str, **fields):
    """A healthy arm's operators with other fields, as a keyword of `seen`."""
    return {arm: {"operators": replace({"fp32": IN_FP32, "amp": IN_BF16}[arm], **fields)}}


def starts(fp32=START, amp=START, again=START, **more):
    return seen(fp32={"start": fp32}, amp={"start": amp}, floor={"start": again}, **more)


def said(code, observed, **limits):
    """What the rule of that code says, if it speaks; no other rule may."""
    found = findings(observed, **limits)
    assert {each.code for each in found} <= {code}
    return found[0] if found else None


def case(name, observed, *rest):
    return pytest.param(observed, *rest, id=name)


def test_no_rule_speaks_of_a_healthy_step() -> None:
    assert findings(seen()) == ()
    assert findings(seen(timing=None)) == ()
    assert findings(seen(fp32={"operators": None}, amp={"operators": None})) == ()


# AMP002 not-reproducible


def repeats(*first: float, start=START, **by_key):
    """The second fp32 run, with these losses before the nudge; by key, in place of one loss."""
    if by_key:
        fp32 = dict.fromkeys(by_key, CURVE)
        again = {key: (*values, *CURVE[2:]) for key, values in by_key.items()}
    else:
        fp32, again = losses(*CURVE), losses(*first, *CURVE[2:])
    return seen(
        fp32={"losses": fp32, "start": start},
        amp={"losses": fp32, "start": start},
        floor={"losses": again, "start": start},
    )


@pytest.mark.parametrize(
    ("observed", "step"),
    [
        case("at once", repeats(2.4, 2.2), 1),
        case("at the second step", repeats(2.3, 2.2005), 2),
        case("in one loss of two", repeats(G=(2.3, 2.2), D=(2.3, 2.3)), 2),
        case("infinite the second time", repeats(2.3, INF), 2),
        case("not a number the second time", repeats(2.3, NAN), 2),
        case(
            "no module to look at, the same first loss", repeats(2.3, 2.3, start=UNSEEN_INPUTS), 2
        ),
    ],
)
def test_amp002_speaks_where_two_fp32_runs_differ_beyond_rounding(observed, step) -> None:
    finding = said("AMP002", observed)
    assert finding.name == "not-reproducible"
    assert finding.severity == "warning"
    assert f"differ at step {step}" in finding.message
    assert finding.evidence["step"] == step


@pytest.mark.parametrize(
    "observed",
    [
        case("the same", repeats(2.3, 2.2)),
        case("a nondeterministic sum", repeats(2.3, 2.20001)),
        case("after the nudge", seen(floor={"losses": losses(*scaled(1.01, last=6))})),
        case("not finite in both", seen(
            fp32={"losses": losses(NAN, *CURVE[1:])}, floor={"losses": losses(NAN, *CURVE[1:])},
        )),
        case("near zero", seen(
            fp32={"losses": losses(*(0.0,) * 8)}, amp={"losses": losses(*(0.0,) * 8)},
            floor={"losses": losses(1e-7, *(0.0,) * 7)},
        )),
    ],
)  # fmt: skip
def test_amp002_leaves_rounding_alone(observed) -> None:
    assert said("AMP002", observed) is None


def test_amp002_is_silent_where_amp003_already_says_why() -> None:
    other = repeats(2.4, 2.2)
    other = replace(other, floor=replace(other.floor, start=OTHER_INPUTS))
    assert said("AMP003", other) is not None


# AMP003 arms-start-differ

DREW_OTHERS = seen(**operators("amp", random_dtypes=frozenset({"bfloat16"}), draws=("[4]:2",)))


@pytest.mark.parametrize(
    ("observed", "what", "between"),
    [
        case("weights", starts(amp=OTHER_WEIGHTS), "weights", "the two arms start"),
        case("inputs", starts(amp=OTHER_INPUTS), "first inputs", "the two arms start"),
        case("unseeded weights", starts(OTHER_WEIGHTS), "weights", "two fp32 builds"),
        case("unseeded inputs", starts(OTHER_INPUTS), "first inputs", "two fp32 builds"),
        case("more parameters", starts(amp=replace(START, parameters=START.parameters * 2)),
             "weights", "the two arms start"),
        case("no module to look at, other first losses",
             repeats(2.4, 2.2, start=UNSEEN_INPUTS), "first losses", "two fp32 builds"),
        case("weights, though draws differ too",
             replace(DREW_OTHERS, amp=replace(DREW_OTHERS.amp, start=OTHER_WEIGHTS)),
             "weights", "the two arms start"),
    ],
)  # fmt: skip
def test_amp003_speaks_where_the_arms_start_from_other_values(observed, what, between) -> None:
    finding = said("AMP003", observed)
    assert finding.name == "arms-start-differ"
    assert finding.severity == "error"
    assert finding.evidence["what"] == what
    assert finding.message.startswith(between)
    assert "nothing below is comparable" in finding.message
    assert "seed what you draw from" in finding.message


W, MOVED = (3.7, 1.0, 2.0, 3.0), (3.7, 1.0, 2.0 + 1e-6, 3.0)  # the norm, and sums


@pytest.mark.parametrize(
    ("samples", "others", "speaks"),
    [
        case("moved away and back", W, MOVED, False),
        case("other weights", W, (3.7, 1.0, 2.1, 3.0), True),
        case("no floating point numbers", (), (), True),
        case("not a number", (math.nan,) * 4, (math.nan,) * 4, True),
    ],
)
def test_amp003_leaves_rounding_of_weights_alone(samples, others, speaks) -> None:
    mine = replace(START, parameter_samples=(samples,))
    theirs = replace(OTHER_WEIGHTS, parameter_samples=(others,))
    for observed in (starts(mine, theirs, mine), starts(mine, mine, theirs)):
        assert (said("AMP003", observed) is not None) is speaks


@pytest.mark.parametrize(
    ("others", "arms", "builds"),
    [
        case("rounded on the way", (3.7, 1.0, 2.01, 3.0), False, True),
        case("moved by an ulp", MOVED, False, False),
        case("other data", (3.7, 1.0, 2.5, 3.0), True, True),
    ],
)
def test_amp003_takes_inputs_that_amp_rounded_for_the_same(others, arms, builds) -> None:
    mine = replace(START, input_samples=(W,))
    theirs = replace(OTHER_INPUTS, input_samples=(others,))
    assert (said("AMP003", starts(mine, theirs, mine)) is not None) is arms
    assert (said("AMP003", starts(mine, mine, theirs)) is not None) is builds


def test_amp003_is_a_warning_where_only_the_random_draws_differ() -> None:
    other_inputs = replace(DREW_OTHERS.amp, start=OTHER_INPUTS)
    finding = said("AMP003", replace(DREW_OTHERS, amp=other_inputs))
    assert finding.severity == "warning"
    assert not finding.stands
    assert "draw in float32" in finding.message


@pytest.mark.parametrize(
    "observed",
    [
        case("the same", starts()),
        case("nothing to look at", starts(NOTHING_SEEN, NOTHING_SEEN, NOTHING_SEEN)),
        case("looked at in one arm only", starts(amp=NOTHING_SEEN)),
        case("inputs cast for the arm", starts(
            amp=replace(START, inputs=("torch.bfloat16[2, 4]:3",)))),
        case("a flag that is the arm's own", starts(
            replace(START, inputs=(*START.inputs, "False")),
            replace(START, inputs=(*START.inputs, "True")),
            replace(START, inputs=(*START.inputs, "False")))),
    ],
)  # fmt: skip
def test_amp003_leaves_alone_what_is_the_same_or_of_another_kind(observed) -> None:
    assert said("AMP003", observed) is None


# AMP004 fp32-arm-not-fp32


@pytest.mark.parametrize(
    ("observed", "severity", "because"),
    [
        case("hard-coded autocast", seen(**operators(
            "fp32", flops_by_dtype={"bfloat16": 900, "float32": 100}, autocast_entered=1)),
            "error", "90% of the fp32 arm's FLOPs ran in bfloat16: a hard-coded autocast"),
        case("hard-coded cast", seen(**operators("fp32", flops_by_dtype={"float16": 1000})),
            "error", "100% of the fp32 arm's FLOPs ran in float16: a hard-coded autocast"),
        case("one layer's autocast", seen(**operators(
            "fp32", flops_by_dtype={"bfloat16": 5, "float32": 995}, autocast_entered=1)),
            "error", "0.50% of the fp32 arm's FLOPs"),
        case("autocast over reduced weights", seen(**operators(
            "fp32", flops_by_dtype={"bfloat16": 1000}, reduced_weights=True, autocast_entered=2)),
            "error", "100% of the fp32 arm's FLOPs"),
        case("a bfloat16 base under LoRA", seen(**operators(
            "fp32", flops_by_dtype={"bfloat16": 900, "float32": 100}, reduced_weights=True)),
            "warning", "because weights are kept in it"),
    ],
)  # fmt: skip
def test_amp004_speaks_where_the_baseline_ran_in_reduced_precision(
    observed, severity, because
) -> None:
    finding = said("AMP004", observed)
    assert (finding.name, finding.severity) == ("fp32-arm-not-fp32", severity)
    assert because in finding.message
    assert 0 < finding.evidence["share"] <= 1


@pytest.mark.parametrize(
    "observed",
    [
        case("float32", seen()),
        case("float64", seen(**operators("fp32", flops_by_dtype={"float64": 1000}))),
        case("not inspected", seen(fp32={"operators": None})),
        case("pointwise alone", seen(fp32={"operators": Operators({}, {"float32": 100})})),
        case("autocast entered and nothing reduced", seen(**operators(
            "fp32", flops_by_dtype={"float32": 1000, "bfloat16": 0}, autocast_entered=1))),
    ],
)  # fmt: skip
def test_amp004_leaves_a_float32_baseline_alone(observed) -> None:
    assert said("AMP004", observed) is None


# AMP005 baseline-flags


@pytest.mark.parametrize(
    ("flags", "listed"),
    [
        ({**FLAGS, "cudnn.benchmark": True}, "cudnn.benchmark: False and True"),
        ({**FLAGS, "float32_matmul_precision": "high"},
         "float32_matmul_precision: highest and high"),
        ({"cudnn.benchmark": True, "float32_matmul_precision": "medium"},
         "cudnn.benchmark: False and True, float32_matmul_precision: highest and medium"),
    ],
    ids=["cudnn", "tf32", "both"],
)  # fmt: skip
def test_amp005_speaks_where_the_arms_ran_under_other_flags(flags, listed) -> None:
    finding = said("AMP005", seen(amp={"flags": flags}))
    assert (finding.name, finding.severity) == ("baseline-flags", "warning")
    assert listed in finding.message
    assert list(finding.evidence) == [name for name in FLAGS if FLAGS[name] != flags[name]]


@pytest.mark.parametrize(
    "flags",
    [FLAGS, {"cudnn.benchmark": True}, {}],
    ids=["as they were", "set in both arms", "none known"],
)
def test_amp005_leaves_flags_alone_that_are_the_same_in_both_arms(flags) -> None:
    assert said("AMP005", seen(fp32={"flags": flags}, amp={"flags": flags})) is None


# AMP006 noisy-machine


def noise(pairs: int, spread: float, rho: float = 0.0, seed: int = 0) -> tuple[float, ...]:
    """Ratios around 1.5 whose logarithms follow each other with correlation rho."""
    draw, state, ratios = random.Random(seed), 0.0, []
    for _ in range(pairs):
        state = rho * state + math.sqrt(1 - rho**2) * draw.gauss(0, 1)
        ratios.append(1.5 * math.exp(spread * state))
    return tuple(ratios)


@pytest.mark.parametrize(
    "ratios",
    [
        case("throttling", tuple(1.5 + 0.01 * i for i in range(20))),
        case("a mode kept for long", ((1.4,) * 12 + (1.6,) * 12) * 2),
        case("slow waves", tuple(1.5 + 0.1 * math.sin(i / 5) for i in range(60))),
        case("autoregressive", noise(120, 0.1, rho=0.6)),
    ],
)
def test_amp006_speaks_where_the_pairs_follow_each_other(ratios) -> None:
    finding = said("AMP006", seen(timing=timing(*ratios)))
    assert (finding.name, finding.severity) == ("noisy-machine", "warning")
    assert "the pairs follow each other" in finding.message
    assert finding.evidence["autocorrelation"] > 0.3
    assert finding.evidence["pairs"] == len(ratios)


@pytest.mark.parametrize(
    "ratios",
    [
        case("all the same", (1.5,) * 50),
        case("by turns", (1.4, 1.6) * 30),
        case("a trend too short to tell", tuple(1.5 + 0.01 * i for i in range(9))),
        case("one slow pair", (*noise(40, 0.02), 9.0, *noise(40, 0.02, seed=1))),
    ],
)
def test_amp006_leaves_fair_pairs_alone(ratios) -> None:
    assert said("AMP006", seen(timing=timing(*ratios))) is None


@pytest.mark.parametrize("pairs", [12, 20, 50, 100])
def test_amp006_is_silent_in_all_but_a_few_of_many_tests_with_independent_noise(pairs) -> None:
    spoke = sum(
        bool(findings(seen(timing=timing(*noise(pairs, 0.1, seed=seed))))) for seed in range(400)
    )
    assert spoke <= 5  # 0.3% wanted: more than 5 of 400 has a probability below 0.1%


def test_amp006_speaks_where_the_spread_can_t_be_overcome_in_the_budget() -> None:
    observed = seen(timing=timing(*noise(40, 0.3)))
    finding = said("AMP006", observed, min_speedup=1.5, max_time=20)
    assert finding.severity == "warning"
    assert "the pairs spread so widely" in finding.message
    assert "the figure is the machine's as much as the step's" in finding.message
    assert finding.evidence["half_width"] > 0.05


def test_amp006_speaks_of_a_spread_beside_a_failure_too() -> None:
    finding = said("AMP006", seen(timing=timing(*noise(40, 0.3))), min_speedup=50)
    assert "the pairs spread so widely" in finding.message


@pytest.mark.parametrize(
    ("ratios", "limits"),
    [
        case("wide, and passed", noise(40, 0.3), {"min_speedup": 0.9}),
        case("wide, and not gated", noise(40, 0.3), {}),
        case("narrow, and undecided", noise(40, 0.01), {"min_speedup": 1.5}),
        case("too few pairs for an interval", (1.0, 2.0, 3.0), {"min_speedup": 1.5}),
    ],
)
def test_amp006_leaves_a_spread_alone_that_is_not_what_stands_in_the_way(ratios, limits) -> None:
    assert said("AMP006", seen(timing=timing(*ratios)), **limits) is None


def test_amp006_does_not_speak_of_a_spread_that_modes_explain() -> None:
    # Too short for the first of them to decide, which what comes later would not take back.
    waves = tuple(1.5 + 0.5 * math.sin(i / 2) for i in range(126))
    [found] = findings(seen(timing=timing(*waves)), min_speedup=1.5)
    assert found.code == "AMP006"
    assert "spread" not in found.message


# AMP101 amp-no-op

NOT_IN_FORCE = {"flops_by_dtype": {"float32": 1000}, "bytes_by_dtype": {"float32": 4000}}
POINTWISE = {"flops_by_dtype": {}, "bytes_by_dtype": {"float32": 4000}}


@pytest.mark.parametrize(
    ("observed", "what"),
    [
        case("autocast never entered", seen(**operators("amp", **NOT_IN_FORCE,
            autocast_entered=0)), "matmul, convolution or attention FLOP"),
        case("entered around nothing", seen(**operators("amp", **NOT_IN_FORCE)),
            "matmul, convolution or attention FLOP"),
        case("bytes reduced but no FLOP", seen(**operators("amp",
            flops_by_dtype={"float32": 1000}, bytes_by_dtype={"bfloat16": 10})),
            "matmul, convolution or attention FLOP"),
        case("pointwise step", seen(fp32={"operators": Operators(**POINTWISE)},
            amp={"operators": Operators(**POINTWISE)}), "byte of activations"),
        case("an unknown operator that took float32", seen(**operators("amp", **NOT_IN_FORCE,
            unknown=("aten::mystery",))), "matmul, convolution or attention FLOP"),
    ],
)  # fmt: skip
def test_amp101_speaks_where_nothing_ran_in_the_amp_dtype(observed, what) -> None:
    finding = said("AMP101", observed)
    assert (finding.name, finding.severity) == ("amp-no-op", "error")
    assert finding.message.startswith(f"not one {what} of the amp arm ran in bfloat16")
    assert "arm.autocast()" in finding.message
    assert finding.stands


@pytest.mark.parametrize(
    "observed",
    [
        case("one FLOP", seen(**operators("amp",
            flops_by_dtype={"bfloat16": 1, "float32": 999}))),
        case("pointwise step with reduced bytes", seen(
            fp32={"operators": Operators(**POINTWISE)},
            amp={"operators": Operators({}, {"bfloat16": 1, "float32": 3999})})),
        case("a step that makes nothing", seen(
            fp32={"operators": Operators()}, amp={"operators": Operators()})),
        case("an unknown operator took reduced tensors", seen(**operators("amp", **NOT_IN_FORCE,
            unknown=("aten::mystery",), hidden_reduced=True))),
        case("a CUDA graph hides the rest", seen(**operators("amp", **NOT_IN_FORCE,
            hidden=("a CUDA graph",), hidden_reduced=True))),
        case("not inspected", seen(amp={"operators": None})),
    ],
)  # fmt: skip
def test_amp101_is_silent_where_something_ran_or_may_have_gone_unseen(observed) -> None:
    assert said("AMP101", observed) is None


@pytest.mark.parametrize(
    ("told", "observed"),
    [
        case("on a CPU", ("was entered for cuda, and this is cpu;", "under arm.autocast()"),
            {"autocast_entered": 0, "autocast_devices": ("cuda",)}),
        case("with CUDA", ("was entered for cuda, and this is cpu;", "under arm.autocast()"),
            {"autocast_entered": 2, "autocast_devices": ("cuda",)}),
        case("its own device", ("around nothing that it casts", "arm.autocast() covers"),
            {"autocast_entered": 2, "autocast_devices": ("cpu",)}),
        case("accelerate", ("Accelerator(mixed_precision=arm.mixed_precision)",),
            {"autocast_entered": 0, "framework": "accelerate"}),
        case("transformers", ("TrainingArguments(fp16=arm.mixed_precision == 'fp16'",),
            {"autocast_entered": 0, "framework": "transformers"}),
        case("lightning", ("Trainer(precision=arm.lightning_precision)",),
            {"autocast_entered": 0, "framework": "lightning"}),
        case("ignite", ("entered for cuda, and this is cpu; on a CPU, Ignite casts nothing,",),
            {"autocast_entered": 0, "autocast_devices": ("cuda",), "framework": "ignite"}),
    ],
)  # fmt: skip
def test_amp101_names_the_device_of_the_region_and_the_switch_of_the_framework(
    told, observed
) -> None:
    finding = said(
        "AMP101", seen(device_type="cpu", **operators("amp", **NOT_IN_FORCE, **observed))
    )
    for part in told:
        assert part in finding.message


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_amp101_knows_what_each_framework_can_t_do_on_a_cpu(framework: str, dtype: str) -> None:
    where = operators("amp", **NOT_IN_FORCE, autocast_entered=0, framework=framework)
    on_cpu = said("AMP101", seen(device_type="cpu", dtype=dtype, **where)).message
    on_gpu = said("AMP101", seen(device_type="cuda", dtype=dtype, **where)).message
    assert ("check this step on a GPU" in on_cpu) == (dtype == "float16" or framework == "ignite")
    assert "arm." in on_gpu
    assert "arm.autocast()" not in on_gpu


# AMP108 dtype-substituted


@pytest.mark.parametrize(
    ("asked", "ran", "observed"),
    [
        case("bfloat16 for float16", "float16", "bfloat16", seen(dtype="float16")),
        case("float16 for bfloat16", "bfloat16", "float16", seen(**operators("amp",
            flops_by_dtype={"float16": 900, "float32": 100}))),
        case("in a pointwise step", "bfloat16", "float16", seen(
            fp32={"operators": Operators(**POINTWISE)},
            amp={"operators": Operators({}, {"float16": 2000})})),
    ],
)  # fmt: skip
def test_amp108_speaks_where_another_reduced_dtype_ran(asked, ran, observed) -> None:
    finding = said("AMP108", observed)
    assert (finding.name, finding.severity) == ("dtype-substituted", "warning")
    assert f"ran in {ran} where {asked} was asked for" in finding.message
    assert finding.evidence == {"asked": asked, "ran": ran}


@pytest.mark.parametrize(
    "observed",
    [
        case("as asked", seen()),
        case("some of both", seen(**operators("amp",
            flops_by_dtype={"bfloat16": 1, "float16": 999}))),
        case("not inspected", seen(amp={"operators": None})),
        case("bytes of another, FLOPs as asked", seen(**operators("amp",
            bytes_by_dtype={"float16": 100}))),
    ],
)  # fmt: skip
def test_amp108_leaves_alone_what_was_asked_for(observed) -> None:
    assert said("AMP108", observed) is None


def test_amp108_speaks_of_recurrent_layers_that_autocast_gives_float16_whatever_is_asked() -> None:
    """Of all the FLOPs or of a few: what ran in bfloat16 beside them hides nothing."""
    layer = OpRow("aten::_cudnn_rnn", "float16", "float16", "encoder", flops=100, location="m.py:3")
    for flops in ({"float16": 100}, {"float16": 100, "bfloat16": 900}):
        finding = said("AMP108", seen(**operators("amp", flops_by_dtype=flops, rows=(layer,))))
        assert "the recurrent layers ran in float16 where bfloat16 was asked for" in finding.message
        assert (finding.module, finding.location) == ("encoder", "m.py:3")
    asked = seen(dtype="float16", **operators("amp", flops_by_dtype=flops, rows=(layer,)))
    assert said("AMP108", asked) is None
    in_float32 = replace(layer, dtype="float32", out="float32")
    assert said("AMP108", seen(**operators("amp", rows=(in_float32,)))) is None


def test_amp108_is_silent_where_nothing_reduced_ran_which_is_amp101_s() -> None:
    assert said("AMP101", seen(**operators("amp", **NOT_IN_FORCE))) is not None


# AMP301 nonfinite-loss

ORIGIN = Origin(3, "aten::exp", "decoder.attention")


def broken(step: int, value: float = NAN, fp32=CURVE, **other):
    curve = losses(*CURVE[:step], value, *CURVE[step + 1 :])
    return seen(amp={"losses": curve}, fp32={"losses": losses(*fp32)}, **other)


@pytest.mark.parametrize(
    ("observed", "step", "place", "remedy"),
    [
        case("located", broken(3, nonfinite_origin=ORIGIN), 4,
             "the first to leave the finite range was aten::exp in decoder.attention",
             "keep that part in float32"),
        case("outside any module", broken(7, INF, nonfinite_origin=Origin(7, "aten::log", None)), 8,
             "the first to leave the finite range was aten::log;", "keep that part in float32"),
        case("not located", broken(0, -INF), 1, "running that step again did not show where",
             "keep that part in float32"),
        case("float16", seen(dtype="float16", amp={
            "losses": losses(*CURVE[:3], NAN, *CURVE[4:]), "operators": None}), 4,
             "did not show where", "or use bfloat16"),
        case("and fp32 later too", broken(2, fp32=(*CURVE[:5], NAN, *CURVE[6:]),
             floor={"losses": losses(*CURVE)}), 3, "did not show where", "keep that part"),
    ],
)  # fmt: skip
def test_amp301_speaks_of_the_first_loss_that_is_finite_in_fp32_only(
    observed, step, place, remedy
) -> None:
    finding = said("AMP301", observed)
    assert (finding.name, finding.severity) == ("nonfinite-loss", "error")
    assert finding.message.startswith(f"the amp loss is not finite at step {step}, where fp32's is")
    assert place in finding.message
    assert remedy in finding.message
    assert ("bfloat16" in finding.message) == (observed.dtype == "float16")
    origin = observed.nonfinite_origin
    assert finding.module == (origin and origin.module)


@pytest.mark.parametrize(
    "observed",
    [
        case("finite", seen()),
        case("not finite in both arms", broken(3, fp32=(*CURVE[:3], NAN, *CURVE[4:]))),
        case("not finite in fp32 alone", seen(fp32={"losses": losses(*CURVE[:7], INF)})),
    ],
)
def test_amp301_leaves_alone_what_fp32_shares(observed) -> None:
    assert said("AMP301", observed) is None


# AMP306 nonfinite-state

POISONED = {"nonfinite_state": ("norm.running_mean", "norm.running_var")}


def test_amp306_names_the_state_its_module_and_the_line_that_calls_it() -> None:
    row = OpRow("aten::batch_norm", "float32", "float32", module="norm", location="net.py:7")
    observed = seen(amp={**POISONED, "operators": replace(IN_BF16, rows=(row,))})
    finding = said("AMP306", observed)
    assert (finding.severity, finding.module, finding.location) == ("error", "norm", "net.py:7")
    assert "norm.running_mean (and 1 more) is not finite" in finding.message


def test_amp306_leaves_alone_what_fp32_shares() -> None:
    assert said("AMP306", seen(amp=POISONED, fp32=POISONED)) is None
    assert said("AMP306", seen()) is None


def test_amp306_is_silent_if_the_loss_stays_so_which_amp301_explains() -> None:
    observed = broken(len(CURVE) - 1)
    observed = replace(observed, amp=replace(observed.amp, **POISONED))
    assert {each.code for each in findings(observed)} == {"AMP301"}


def test_amp301_names_the_line_and_the_values() -> None:
    origin = replace(
        ORIGIN, location="loss.py:9", dtype="float16", inputs=(45000.0, 2.0), largest=45000.0
    )
    finding = said("AMP301", broken(3, nonfinite_origin=origin))
    assert finding.location == "loss.py:9"
    assert (
        "aten::exp in decoder.attention at loss.py:9 (float16), made of 4.5e+04 and 2"
        in finding.message
    )


def test_amp301_names_the_gradient_that_ruined_the_weights() -> None:
    origin = replace(ORIGIN, step=2, phase="backward", node="ExpBackward0", made="NaN")
    message = said("AMP301", broken(3, nonfinite_origin=origin)).message
    assert "the gradient of aten::exp in decoder.attention (ExpBackward0) is NaN" in message
    assert "in step 3, which is not scaled" in message


# AMP401 no-native-support


@pytest.mark.parametrize(
    ("ratios", "limits", "shown"),
    [
        case("slower", (0.02,) * 12, {}, "0.02x"),
        case("slower and gated", (0.5,) * 12, {"min_speedup": 1.0}, "0.50x"),
        case("not as fast as wanted", (1.1,) * 12, {"min_speedup": 1.3}, "1.10x"),
    ],
)
def test_amp401_speaks_of_a_slowdown_on_a_device_without_the_fast_path(
    ratios, limits, shown
) -> None:
    finding = said("AMP401", seen(native_support=False, timing=timing(*ratios)), **limits)
    assert (finding.name, finding.severity) == ("no-native-support", "warning")
    assert f"Some CPU has no fast path for bfloat16, which is emulated ({shown})" in finding.message
    assert "min_speedup by device" in finding.message


@pytest.mark.parametrize(
    ("native", "ratios", "limits"),
    [
        case("faster all the same", False, (1.4,) * 12, {"min_speedup": 1.2}),
        case("faster and not gated", False, (1.4,) * 12, {}),
        case("slow with native support", True, (0.5,) * 12, {"min_speedup": 1.2}),
        case("too few pairs to say slower", False, (0.5,) * 3, {}),
    ],
)
def test_amp401_is_silent_where_no_harm_is_shown(native, ratios, limits) -> None:
    observed = seen(native_support=native, timing=timing(*ratios))
    assert said("AMP401", observed, **limits) is None


def test_amp401_is_silent_where_nothing_was_timed() -> None:
    assert said("AMP401", seen(native_support=False, timing=None)) is None


# Which rules may speak.

# Faulty in three ways: AMP005, AMP101, AMP301.
FAULTY = replace(
    broken(3, nonfinite_origin=ORIGIN),
    amp=replace(
        broken(3).amp,
        operators=replace(IN_BF16, **NOT_IN_FORCE),
        flags={**FLAGS, "cudnn.benchmark": True},
    ),
)


def codes(*select: str) -> list[str]:
    return [finding.code for finding in findings(FAULTY, select=select)]


def test_all_findings_are_given_in_the_order_of_their_codes() -> None:
    assert codes("AMP") == ["AMP005", "AMP101", "AMP301"]
    listed = [rule.code for rule in registry.RULES if rule.of is Case]
    assert listed == sorted(set(listed))


@pytest.mark.parametrize(
    ("select", "heard"),
    [
        (("AMP101",), ["AMP101"]),
        (("AMP1",), ["AMP101"]),
        (("AMP0", "AMP301"), ["AMP005", "AMP301"]),
        (("AMP4",), []),
        ((), []),
    ],
)
def test_select_limits_who_may_speak_by_code_or_prefix(select, heard) -> None:
    assert codes(*select) == heard


def suppressed(**ignore: str) -> dict[str, str | None]:
    return {each.code: each.suppressed for each in findings(FAULTY, ignore=ignore)}


@pytest.mark.parametrize(
    ("pattern", "silenced"),
    [
        ("AMP101", {"AMP101"}),
        ("AMP3", {"AMP301"}),
        ("AMP", {"AMP005", "AMP101", "AMP301"}),
        ("AMP301@decoder.*", {"AMP301"}),
        ("AMP301@decoder.attention", {"AMP301"}),
        ("AMP3@*.attention", {"AMP301"}),
        ("AMP301@encoder.*", set()),
        ("AMP301@decoder", set()),
        ("AMP301@DECODER.*", set()),
        ("AMP101@decoder.*", set()),  # it names no module
        ("AMP402", set()),
    ],
)
def test_ignore_silences_by_code_prefix_and_module_and_keeps_the_reason(pattern, silenced) -> None:
    outcome = suppressed(**{pattern: "known, see the tracker"})
    assert set(outcome) == {"AMP005", "AMP101", "AMP301"}  # what is ignored is still told
    assert {code for code, reason in outcome.items() if reason} == silenced
    assert set(outcome.values()) <= {None, "known, see the tracker"}


def test_each_suppression_keeps_its_own_reason() -> None:
    outcome = suppressed(AMP101="a test of fp32", **{"AMP301@decoder.*": "clamped later"})
    assert outcome == {"AMP005": None, "AMP101": "a test of fp32", "AMP301": "clamped later"}


def test_only_errors_that_are_not_suppressed_stand() -> None:
    stands = {each.code: each.stands for each in findings(FAULTY)}
    assert stands == {"AMP005": False, "AMP101": True, "AMP301": True}
    ignored = findings(FAULTY, ignore={"AMP": "all known"})
    assert not any(each.stands for each in ignored)


def test_nothing_measured_is_an_error_that_says_what_to_call() -> None:
    [finding] = registry.findings(NeverCalled(), ("AMP001",), {})
    assert isinstance(finding, Finding)
    assert (finding.code, finding.name, finding.stands) == ("AMP001", "nothing-measured", True)
    assert "call amp_benchmark(setup)" in finding.message


# A finding's place.


def test_a_finding_without_a_line_says_why() -> None:
    speed = replace(seen(), native_support=False, timing=timing(*(0.5,) * 12))
    [machine] = [each for each in findings(speed) if each.code == "AMP401"]
    assert (machine.location, machine.no_location) == (None, "it is about the device")
    assert str(machine).endswith("(no line: it is about the device)")


def test_a_line_that_was_looked_for_and_not_found_is_told_as_such() -> None:
    [found] = findings(seen(amp={"operators": replace(IN_BF16, backward_under_autocast=1)}))
    assert (found.code, found.location) == ("AMP105", None)
    assert found.no_location == "its line was looked for and not seen"


def test_a_finding_with_a_line_needs_no_reason() -> None:
    began = replace(IN_BF16, backward_under_autocast=1, backward_under_autocast_at="train.py:3")
    [found] = findings(seen(amp={"operators": began}))
    assert (found.location, found.no_location) == ("train.py:3", None)
    assert "no line" not in str(found)


@pytest.mark.parametrize("code", CODES)
def test_a_reason_is_part_of_a_sentence(code) -> None:
    reason = CODES[code].placeless
    assert reason is None or (reason[0].islower() and not reason.endswith("."))
