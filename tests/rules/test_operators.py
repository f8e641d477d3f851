"""Rules that read the operator record, parameters and memory, on records at their limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_amp.observations import (
    Operators,
    OpRow,
    Parameter,
    Region,
    RoundTrip,
    ScalerUse,
    StaleCast,
)
from pytest_amp.recipes import Recipe, Recipes
from tests.helpers.observations import (
    IN_BF16,
    IN_FP32,
    findings,
    gate,
    losses,
    scaled,
    seen,
    timing,
)

MIB = 2**20
NO_SCALER = ScalerUse()
FLOPS = OpRow("aten::mm", "bfloat16", "bfloat16", "head", flops=100, dims=(64, 64, 64))


def rows(*given, **more):
    """What was seen where the amp arm's inspected step ran these."""
    return seen(amp={"operators": replace(IN_BF16, rows=given, **more)})


def amp(**fields):
    return seen(amp=fields)


def heard(observed, **limits):
    """Code and message of the one finding, or nothing."""
    found = findings(observed, **limits)
    assert len(found) <= 1, found
    return (found[0].code, found[0].message) if found else (None, "")


def cast(bytes_, **more):
    return OpRow("aten::_to_copy", "float32", "bfloat16", "embed", bytes=bytes_, **more)


# AMP102 half-parameters


def trained(*dtypes):
    return tuple(Parameter(dtype, True, f"layers.{i}.weight") for i, dtype in enumerate(dtypes))


def test_amp102_speaks_of_trained_parameters_in_half_precision() -> None:
    [finding] = findings(amp(parameters=trained("float32", "bfloat16", "float16")))
    assert (finding.code, finding.severity, finding.module) == ("AMP102", "error", "layers.1")
    assert "2 of 3 trained parameters" in finding.message
    assert "(layers.1.weight, layers.2.weight)" in finding.message


def test_amp102_only_warns_of_what_both_arms_keep_in_half() -> None:
    adapter = trained("bfloat16", "float32")
    [finding] = findings(seen(fp32={"parameters": adapter}, amp={"parameters": adapter}))
    assert (finding.code, finding.severity) == ("AMP102", "warning")
    assert "1 of 2 trained parameters of both arms" in finding.message


def test_amp102_names_what_amp_alone_keeps_in_half() -> None:
    [finding] = findings(
        seen(
            fp32={"parameters": trained("bfloat16", "float32", "bfloat16")},
            amp={"parameters": trained("bfloat16", "bfloat16", "float16")},
        )
    )
    assert (finding.code, finding.severity) == ("AMP102", "error")
    assert "(layers.1.weight, layers.2.weight)" in finding.message


@pytest.mark.parametrize("dtypes", [(), ("float32",), ("float32", "float64")])
def test_amp102_leaves_full_precision_alone(dtypes) -> None:
    assert heard(amp(parameters=trained(*dtypes))) == (None, "")


def true(name, **other):
    recipes = Recipes(Recipe(), Recipe.parse(name))
    return seen(recipes=recipes, amp={"parameters": trained("bfloat16", "bfloat16"), **other})


def test_amp102_leaves_a_model_alone_that_its_recipe_keeps_in_half() -> None:
    assert heard(true("bf16-true")) == (None, "")


def test_amp102_may_be_why_the_losses_of_such_a_model_differ() -> None:
    [finding] = findings(true("bf16-true", losses=losses(*scaled(1.2))))
    assert (finding.code, finding.severity) == ("AMP102", "warning")
    assert "2 of 2 trained parameters are kept in bfloat16, as bf16-true has it" in finding.message


def test_amp102_speaks_of_another_dtype_than_the_recipes() -> None:
    [finding] = findings(true("fp16-true"))
    assert (finding.code, finding.severity) == ("AMP102", "error")


def test_float8_that_a_device_multiplies_in_is_work_of_the_recipe() -> None:
    """As it would be on a GPU: nothing here multiplies in float8."""
    ran = Operators(
        {"float8_e4m3fn": 900, "bfloat16": 50, "float32": 50},
        {"float8_e4m3fn": 100, "bfloat16": 1900},
        draws=IN_FP32.draws,
        autocast_entered=1,
    )
    only = replace(ran, flops_by_dtype={"float8_e4m3fn": 1000})
    recipes = Recipes(Recipe.parse("bf16"), Recipe.parse("fp8"))
    for operators, share in ((ran, 0.95), (only, 1.0)):
        observed = seen(recipes=recipes, fp32={"operators": IN_BF16}, amp={"operators": operators})
        assert findings(observed) == ()
        assert gate("coverage", observed).value == pytest.approx(share)


# AMP103 stale-autocast-cache


def test_amp103_speaks_of_each_module_with_a_stale_cast() -> None:
    stale = StaleCast("a", "a.weight", "net.py:3", "train.py:9"), StaleCast("b.c", None, "net.py:4")
    found = findings(seen(amp={"operators": replace(IN_BF16, stale=stale)}))
    assert [(each.code, each.module) for each in found] == [("AMP103", "a"), ("AMP103", "b.c")]
    first, second = found
    assert first.location == "train.py:9"  # the region that outlives the update
    assert first.message.startswith("a.weight was updated")
    assert "at net.py:3" in first.message
    assert second.location == "net.py:4"


# AMP104 missing-gradients


def gradients(fp32, amp_):
    def all_of(pattern):
        return tuple(Parameter("float32", each == "g", f"{i}.w") for i, each in enumerate(pattern))

    return seen(fp32={"parameters": all_of(fp32)}, amp={"parameters": all_of(amp_)})


def test_amp104_speaks_of_parameters_that_only_fp32_trains() -> None:
    code, message = heard(gradients("gggg", "g..."))
    assert code == "AMP104"
    assert "3 parameters that train in fp32" in message
    assert "(1.w, 2.w, ...)" in message


@pytest.mark.parametrize(("fp32", "amp_"), [("gg", "gg"), ("g.", "g."), ("g.", "gg"), ("gg", "g")])
def test_amp104_leaves_alone_what_neither_arm_trains_or_what_can_t_be_matched(fp32, amp_) -> None:
    assert heard(gradients(fp32, amp_)) == (None, "")


# AMP105 backward-under-autocast


def test_amp105_counts_the_backward_passes_under_autocast() -> None:
    [finding] = findings(rows(FLOPS, backward_under_autocast=2))
    assert (finding.code, finding.severity) == ("AMP105", "warning")
    assert finding.message.startswith("2 calls of backward()")


# AMP106 recompute-dtype and AMP107 custom-function-dtype


def test_amp106_speaks_where_a_module_recomputes_in_another_dtype() -> None:
    again = replace(FLOPS, phase="recompute", dtype="float32")
    [finding] = findings(rows(FLOPS, again))
    assert (finding.code, finding.module) == ("AMP106", "head")
    assert "ran in bfloat16 and is computed again in float32" in finding.message


@pytest.mark.parametrize(
    "again",
    [
        replace(FLOPS, phase="recompute"),
        replace(FLOPS, phase="recompute", dtype="float32", module="other"),
        replace(FLOPS, phase="recompute", dtype="float32", flops=0),
        replace(FLOPS, phase="backward", dtype="float32"),
    ],
)
def test_amp106_leaves_alone_what_is_the_same_or_elsewhere(again) -> None:
    assert heard(rows(FLOPS, again)) == (None, "")


def test_amp106_is_one_finding_for_what_one_line_recomputes() -> None:
    def both(module):
        first = replace(FLOPS, module=module)
        return first, replace(first, phase="recompute", dtype="float32", location="net.py:25")

    [finding] = findings(rows(*both("a"), *both("b")))
    assert (finding.code, finding.module, finding.location) == ("AMP106", "a", "net.py:25")
    assert "(a, b)" in finding.message
    assert finding.evidence["modules"] == ["a", "b"]


def test_amp107_speaks_where_a_functions_backward_runs_in_another_dtype() -> None:
    ahead = replace(FLOPS, function="Product")
    behind = replace(ahead, phase="backward", dtype="float32")
    code, message = heard(rows(ahead, behind))
    assert code == "AMP107"
    assert "Product's forward runs in bfloat16, its backward in float32" in message


@pytest.mark.parametrize(
    ("ahead", "behind"),
    [("Product", "Other"), (None, None), ("Product", None)],
)
def test_amp107_compares_a_function_with_itself_only(ahead, behind) -> None:
    backward = replace(FLOPS, phase="backward", dtype="float32", function=behind)
    assert heard(rows(replace(FLOPS, function=ahead), backward)) == (None, "")


# AMP110 autocast-not-inherited


def elsewhere(flops=300, **more):
    given = {"dtype": "float32", "module": "tower", "location": "net.py:7", **more}
    return replace(FLOPS, flops=flops, **{"lacks_autocast": True, **given})


def test_amp110_names_what_other_threads_ran_without_the_region() -> None:
    less = elsewhere(20, location="net.py:3")
    [finding] = findings(rows(FLOPS, less, elsewhere(280)))
    assert (finding.code, finding.severity) == ("AMP110", "warning")
    assert (finding.module, finding.location) == ("tower", "net.py:7")
    assert "75% of the forward FLOPs ran in float32 in other threads" in finding.message


@pytest.mark.parametrize(
    "row",
    [
        elsewhere(dtype="bfloat16"),  # the inputs were cast by hand
        elsewhere(0),
        elsewhere(lacks_autocast=False, chosen=True),
    ],
)
def test_amp110_leaves_alone(row) -> None:
    assert heard(rows(FLOPS, row)) == (None, "")


@pytest.mark.parametrize(
    ("regions", "says", "place"),
    [
        (
            (Region("train.py:5", "cpu", "bfloat16"), Region("net.py:9", "cpu", None, True, 300)),
            "a region that is switched off (enabled=False) inside of the arm's",
            "net.py:9",
        ),
        (
            (Region("net.py:9", "cpu", None, flops=300),),
            "a region that is switched off (enabled=False) is around the work",
            "net.py:9",
        ),
        ((Region("net.py:9", "cpu", None),), "around nothing that it casts", "net.py:7"),
        ((), "around nothing that it casts", "net.py:7"),
    ],
)
def test_amp101_points_at_the_region_that_is_off_or_at_the_work(regions, says, place) -> None:
    work = OpRow("aten::mm", "float32", "float32", "head", flops=300, location="net.py:7")
    observed = rows(work, flops_by_dtype={"float32": 300}, bytes_by_dtype={}, regions=regions)
    [finding] = findings(observed)
    assert (finding.code, finding.location) == ("AMP101", place)
    assert says in finding.message


def test_amp101_says_where_all_the_work_went() -> None:
    found = findings(rows(elsewhere(), flops_by_dtype={"float32": 300}))
    assert [each.code for each in found] == ["AMP101", "AMP110"]
    assert "the work ran in other threads" in found[0].message
    assert "inside the function that the thread runs" in found[0].message


# AMP201 fp16-without-scaler and AMP209 scale-changed-mid-accumulation


def half_backward(scaler=NO_SCALER, **more):
    back = replace(FLOPS, phase="backward", dtype="float16")
    operators = replace(IN_BF16, rows=(back,), flops_by_dtype={"float16": 100}, **more)
    return seen(amp={"operators": operators, "scaler": scaler}, dtype="float16")


@pytest.mark.parametrize("scale", [None, 1.0, 1.9])
def test_amp201_speaks_of_a_float16_backward_of_a_loss_that_is_not_scaled(scale) -> None:
    [finding] = findings(half_backward(backward_scale=scale))
    assert (finding.code, finding.severity, finding.module) == ("AMP201", "error", "head")


@pytest.mark.parametrize(
    "observed",
    [half_backward(backward_scale=2.0), half_backward(ScalerUse(scaled=1)), rows(FLOPS)],
)
def test_amp201_is_silent_where_a_scaler_a_factor_or_the_range_helps(observed) -> None:
    assert heard(observed) == (None, "")


def test_amp209_counts_updates_between_backward_passes() -> None:
    code, message = heard(amp(scaler=ScalerUse(updates=8, updates_in_midst=4)))
    assert code == "AMP209"
    assert "4 times between backward passes" in message


def test_amp209_counts_updates_before_a_step() -> None:
    code, message = heard(amp(scaler=ScalerUse(updates=8, updates_before_step=3)))
    assert code == "AMP209"
    assert "3 times between a backward pass and the scaler.step()" in message


# AMP402 fp32-fallback


def kept(flops, autocast=False):
    return replace(FLOPS, dtype="float32", module="tail", flops=flops, autocast=autocast,
                   location="net.py:12")  # fmt: skip


def test_amp402_names_where_float32_is_kept_outside_of_autocast() -> None:
    [finding] = findings(rows(FLOPS, kept(25)))
    assert (finding.code, finding.severity) == ("AMP402", "warning")
    assert (finding.module, finding.location) == ("tail", "net.py:12")
    assert "20% of the forward FLOPs stay in float32" in finding.message
    assert "most of them in aten::mm in tail (net.py:12)" in finding.message


@pytest.mark.parametrize("given", [(FLOPS, kept(24)), (FLOPS, kept(900, autocast=True)), (FLOPS,)])
def test_amp402_leaves_alone_little_of_it_and_what_a_kernel_wants(given) -> None:
    assert heard(rows(*given)) == (None, "")


# AMP403 cast-bound


def made(bytes_):
    return OpRow("aten::relu", "bfloat16", "bfloat16", bytes=bytes_)


def no_faster(*given, ratio=1.0, **more):
    return replace(rows(*given, **more), timing=timing(*(ratio,) * 12))


@pytest.mark.parametrize(("ratio", "speaks"), [(0.9, True), (1.0, True), (1.05, False)])
def test_amp403_is_about_steps_that_do_not_gain(ratio, speaks) -> None:
    code, _ = heard(no_faster(cast(4 * MIB), made(6 * MIB), ratio=ratio))
    assert code == ("AMP403" if speaks else None)


@pytest.mark.parametrize(("flops", "speaks"), [(128, True), (129, False)])
def test_amp403_leaves_a_step_alone_that_is_nearly_all_matrix_products(flops, speaks) -> None:
    work = {"flops_by_dtype": {"bfloat16": flops * 4 * MIB}}
    observed = replace(rows(cast(4 * MIB), made(6 * MIB), **work), timing=None)
    assert heard(observed)[0] == ("AMP403" if speaks else None)


def test_amp403_speaks_where_casts_are_most_of_what_is_made() -> None:
    [finding] = findings(no_faster(cast(4 * MIB, count=3), made(6 * MIB)))
    assert (finding.code, finding.module) == ("AMP403", "embed")
    assert "40% of the bytes that the amp arm makes are casts (3 casts)" in finding.message


@pytest.mark.parametrize(
    "given",
    [
        (cast(4 * MIB - 1), made(6 * MIB)),
        (cast(4 * MIB), made(3 * MIB)),  # a small step
        (cast(40 * MIB, phase="update"), made(8 * MIB)),
        (OpRow("aten::_to_copy", "float32", "float32", bytes=8 * MIB), made(MIB)),  # no cast
    ],
)
def test_amp403_leaves_small_steps_and_few_casts_alone(given) -> None:
    assert heard(rows(*given)) == (None, "")


# AMP404 host-bound


def busy(seconds, ratio=1.1):
    timed = replace(timing(*(ratio,) * 12), busy_s=seconds)
    return seen(timing=timed, device_type="cuda")


def test_amp404_speaks_where_the_accelerator_waits_and_speed_is_missed() -> None:
    [finding] = findings(busy(0.005), min_speedup=1.3)
    assert (finding.code, finding.severity) == ("AMP404", "warning")
    assert "works for 5.00 ms of an amp step of 10.0 ms and waits 50% of it" in finding.message


@pytest.mark.parametrize(
    ("observed", "wanted"),
    [
        (busy(0.00501), 1.3),
        (busy(0.001, ratio=1.5), 1.3),
        (busy(0.001), None),
        (busy(None), 1.3),
        (busy(0.012), 1.3),  # on several streams
    ],
)
def test_amp404_is_silent_where_it_works_or_speed_is_as_wanted(observed, wanted) -> None:
    assert heard(observed, min_speedup=wanted) == (None, "")


# AMP405 slow-shapes


def shaped(*dims, flops=100, **more):
    return replace(FLOPS, dims=dims, flops=flops, **more)


def on_cuda(*given, **more):
    return replace(rows(*given), device_type="cuda", **more)


@pytest.mark.parametrize("dims", [(64, 1001, 64), (50257, 768, 64), (9, 8, 8)])
def test_amp405_speaks_of_dimensions_that_are_no_multiple_of_8(dims) -> None:
    [finding] = findings(on_cuda(shaped(*dims)))
    assert (finding.code, finding.severity, finding.module) == ("AMP405", "warning", "head")
    assert "100% of the reduced FLOPs" in finding.message


def test_amp405_says_what_to_pad_to() -> None:
    assert "(50257 in aten::mm in head)" in heard(on_cuda(shaped(64, 50257)))[1]
    assert "for example to 50264" in heard(on_cuda(shaped(64, 50257)))[1]


@pytest.mark.parametrize(
    "observed",
    [
        rows(shaped(64, 1001)),  # on a CPU
        on_cuda(shaped(64, 1001), native_support=False),
        on_cuda(shaped(64, 64)),
        on_cuda(shaped(1, 3, 8)),  # tiny ones are padded by the kernels
        on_cuda(shaped(64, 1001, flops=24), shaped(64, 64, flops=100)),
        on_cuda(shaped(64, 64), shaped(64, 1001, dtype="float32", autocast=True)),
    ],
)
def test_amp405_leaves_other_devices_shapes_and_shares_alone(observed) -> None:
    assert heard(observed) == (None, "")


# AMP501 memory-not-reduced


def memory(**held):
    fields = {"peak_bytes": 100 * MIB, "held": held}
    return seen(fp32={"peak_bytes": 100 * MIB}, amp=fields)


def test_amp501_lists_what_a_missed_peak_is_made_of() -> None:
    held = {"parameters": 40 * MIB, "optimizer state": 30 * MIB, "gradients": 2 * MIB}
    code, message = heard(memory(**held), min_memory_reduction=0.3)
    assert code == "AMP501"
    assert "40.0 MiB parameters, 30.0 MiB optimizer state, 28.0 MiB activations" in message
    assert "gradients," not in message  # a small part
    assert "stay in float32, so only a larger share of activations" in message


def test_amp501_looks_at_activations_where_they_are_most() -> None:
    message = heard(memory(parameters=10 * MIB), min_memory_reduction=0.3)[1]
    assert "see that what is saved for the backward pass is in the amp dtype" in message


@pytest.mark.parametrize("wanted", [None, 0.0])
def test_amp501_is_silent_where_nobody_asked_for_less(wanted) -> None:
    assert heard(memory(parameters=10 * MIB), min_memory_reduction=wanted) == (None, "")


# AMP502 memory-growth


def levels(amp_, fp32=(10 * MIB,) * 12):
    def run(given):
        return {"levels": tuple(given), "peak_bytes": 20 * MIB}

    return seen(fp32=run(fp32), amp=run(amp_))


def rising(by, steps=12):
    return [10 * MIB + by * step for step in range(steps)]


@pytest.mark.parametrize(("fp32", "severity"), [(rising(0), "error"), (rising(MIB), "warning")])
def test_amp502_speaks_of_growth_and_calls_it_an_error_where_fp32_does_not_grow(
    fp32, severity
) -> None:
    [finding] = findings(levels(rising(MIB), fp32))
    assert (finding.code, finding.severity) == ("AMP502", severity)
    assert "holds 1.00 MiB more after each step" in finding.message


@pytest.mark.parametrize(
    "amp_",
    [
        rising(0),
        rising(2048),  # what we keep ourselves
        rising(20 * MIB // 1000),
        rising(MIB)[:6] + rising(0)[:6],  # caches that fill
        [*rising(MIB)[:11], 10 * MIB],  # and falls again
        rising(MIB, steps=4),  # too few to say
        [],
    ],
)
def test_amp502_leaves_caches_and_accidents_alone(amp_) -> None:
    assert heard(levels(amp_)) == (None, "")


# AMP406 wasted-casts


def trips(*given, low=0.9, peak_bytes=100 * MIB, made_bytes=40 * MIB, **more):
    """What was seen where these values went up to float32 and back for nothing."""
    made = {"bytes_by_dtype": {"bfloat16": made_bytes}, "round_trips": given, **more}
    operators = replace(IN_BF16, **made)
    arms = {"fp32": {"peak_bytes": peak_bytes}, "amp": {"peak_bytes": peak_bytes}}
    arms["amp"]["operators"] = operators
    return seen(timing=timing(*(low,) * 12), **arms)


def trip(held, moved=MIB, line=8, **more):
    return RoundTrip(f"lora.py:{line}", "layers.0", count=1, bytes=moved, held=held, **more)


def test_amp406_names_the_line_that_holds_most() -> None:
    [finding] = findings(trips(trip(2 * MIB, line=3), trip(3 * MIB)))
    assert (finding.code, finding.severity) == ("AMP406", "warning")
    assert (finding.module, finding.location) == ("layers.0", "lora.py:8")
    assert "5.00 MiB (5.0% of the amp arm's peak)" in finding.message
    assert finding.evidence == {"casts": 2, "bytes": 2 * MIB, "held": 5 * MIB}


@pytest.mark.parametrize(
    ("observed", "speaks"),
    [
        (trips(trip(5 * MIB)), True),
        (trips(trip(5 * MIB - 1)), False),
        (trips(trip(16 * 2**10), peak_bytes=MIB // 10), True),
        (trips(trip(16 * 2**10 - 1), peak_bytes=MIB // 10), False),
        (trips(trip(5 * MIB), low=1.5), True),  # memory is lost in a fast step, too
        (trips(trip(5 * MIB), hidden=("a Triton kernel",)), False),  # which may need it
        (trips(trip(0, 8 * MIB)), True),
        (trips(trip(0, 8 * MIB), peak_bytes=None), True),
        (trips(trip(0, 8 * MIB - 1)), False),
        (trips(trip(0, 8 * MIB), low=1.5), False),
        (trips(trip(0, 7 * MIB), made_bytes=8 * MIB - 1), False),
        (trips(), False),
    ],
)
def test_amp406_speaks_of_what_matters_for_memory_or_time(observed, speaks) -> None:
    assert heard(observed)[0] == ("AMP406" if speaks else None)


# AMP503 cast-materialised


def peak(row, bytes_=100 * MIB):
    operators = replace(IN_BF16, rows=(row, made(200 * MIB)))
    return seen(fp32={"peak_bytes": bytes_}, amp={"peak_bytes": bytes_, "operators": operators})


def test_amp503_says_of_what_the_largest_cast_was_made() -> None:
    [finding] = findings(peak(cast(30 * MIB, largest=30 * MIB, stretch=64)))
    assert (finding.code, finding.module) == ("AMP503", "embed")
    assert "one cast of a tensor that is expanded 64 times" in finding.message
    assert "takes 30.0 MiB, 30% of the amp arm's peak: cast it before it is expanded" in (
        finding.message
    )
    plain = heard(peak(cast(30 * MIB, largest=30 * MIB)))[1]
    assert "make it in that dtype at once" in plain


@pytest.mark.parametrize(
    "observed",
    [
        peak(cast(29 * MIB, largest=29 * MIB)),
        peak(cast(MIB - 1, largest=MIB - 1), MIB),
        peak(cast(60 * MIB, largest=60 * MIB, phase="update")),
        peak(cast(60 * MIB, largest=2 * MIB, count=30)),  # many small ones
        peak(made(60 * MIB)),
        peak(cast(60 * MIB, largest=60 * MIB), None),
    ],
)
def test_amp503_leaves_small_casts_and_the_optimizers_alone(observed) -> None:
    assert heard(observed) == (None, "")


def test_a_curve_that_parts_is_no_business_of_these() -> None:
    assert heard(seen(amp={"losses": {"loss": scaled(1.5)}})) == (None, "")
