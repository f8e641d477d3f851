"""The loss over several seeds, and the errors of both arms against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_amp.judge import anchor, loss, seeds
from pytest_amp.judge.case import Limits
from pytest_amp.observations import Observations, SeedRun, Start
from pytest_amp.recipes import Recipe, Recipes
from tests.helpers.observations import (
    AMP,
    CURVE,
    FP32,
    IN_BF16,
    IN_FP32,
    gate,
    losses,
    scaled,
    seen,
)

OTHER = Start(("torch.float32[4]:8",), ("torch.float32[2, 4]:10",), ("cpu",))


def run(seed: int, factor: float, **amp: object) -> SeedRun:
    """Both arms of one seed, whose amp losses are so many times fp32's."""
    curve = tuple(loss * (1 + seed / 100) for loss in CURVE)
    return SeedRun(
        seed,
        replace(FP32, losses=losses(*curve), start=OTHER),
        replace(AMP, losses=losses(*(loss * factor for loss in curve)), **amp),
    )


def over(*factors: float, **given: object) -> Observations:
    """What was seen where the amp losses of each seed are so many times fp32's."""
    first, *further = factors
    return seen(
        amp={"losses": losses(*scaled(first))},
        seeds=tuple(run(seed, factor) for seed, factor in enumerate(further, start=1)),
        **given,
    )


def judged(observed: Observations, **limits: object) -> tuple[str, str]:
    found = gate("loss_diff", observed, **limits)
    return found.verdict, found.reason


def test_seeds_that_agree_with_the_limit_on_average_pass() -> None:
    found = gate("loss_diff", over(1.004, 0.997, 1.002, 1.001), loss_atol=0.0)
    assert found.verdict == "pass"
    assert found.value == pytest.approx(0.001, abs=1e-4)
    assert found.low == 0
    assert 0.004 < found.high < 0.02
    assert found.reason == ("0.10% [0%, 0.76%] over 4 seeds (0.40% with seed 0) is at most 2.0%")


def test_one_seed_that_is_far_off_by_chance_does_not_fail_the_others() -> None:
    """The first seed alone would."""
    factors = (1.03, 0.98, 1.0, 1.0, 0.99, 1.01, 1.0, 0.99, 1.0, 1.01)
    quiet = {"losses": losses(*CURVE)}
    assert judged(replace(over(*factors, floor=quiet), seeds=()), loss_atol=0.0)[0] == "fail"
    assert judged(over(*factors, floor=quiet), loss_atol=0.0)[0] == "pass"


def test_a_difference_that_every_seed_shows_fails() -> None:
    verdict, reason = judged(over(1.05, 1.06, 1.05, 1.04, 1.05), loss_atol=0.0)
    assert verdict == "fail"
    assert reason == "5.0% [3.9%, 6.1%] over 5 seeds (6.0% with seed 1) is beyond 2.0%"


def test_too_few_seeds_give_no_answer_and_say_how_many_would() -> None:
    verdict, reason = judged(over(1.005, 1.015), loss_atol=0.0)
    assert verdict == "inconclusive"
    assert "can't be told from 2.0%; about 6 seeds would do, if they are like these" in reason
    verdict, reason = judged(over(1.02, 1.03, 1.01), loss_atol=0.0)
    assert (verdict, reason.endswith("; raise max_loss_diff")) == ("inconclusive", True)


def test_a_chaotic_model_gets_an_answer_that_one_seed_can_t_give() -> None:
    """Rounding alone moves its loss by 10%, and the seeds average that out."""
    chaos = {"losses": losses(*scaled(1.1, last=5))}
    noisy = [1 + sign * 0.03 for sign in (1, -1) * 16]
    assert judged(over(1.03, floor=chaos), loss_atol=0.0)[0] == "inconclusive"
    assert judged(over(*noisy, floor=chaos), loss_atol=0.0)[0] == "pass"


def test_small_losses_are_held_to_what_one_seed_is_held_to() -> None:
    rounded = losses(*scaled(1.001))
    few = over(1.03, 1.031, 1.029, rounded=rounded)
    assert judged(few, loss_atol=1.0, loss_atol_is_chosen=False)[0] == "fail"
    assert judged(few, loss_atol=1.0)[0] == "pass"
    assert judged(few, loss_atol=1.0)[1].endswith("is within loss_atol=1")


@pytest.mark.parametrize(
    ("amp", "verdict", "reason"),
    [
        ({"moved": False}, "fail", "the amp arm's parameters never moved, where the fp32 arm's"),
        ({"stalled": True, "skipped_steps": 8}, "inconclusive", "the GradScaler skipped 8 steps"),
    ],
)
def test_a_seed_that_can_t_be_compared_is_named(amp, verdict, reason) -> None:
    observed = over(1.0, 1.0)
    third = run(2, 1.0, **amp)
    third = replace(third, fp32=replace(third.fp32, moved=True))
    found = judged(replace(observed, seeds=(*observed.seeds, third)))
    assert found[0] == verdict
    assert found[1].startswith(reason)
    assert found[1].endswith("(seed 2)")


def test_a_loss_that_is_not_finite_with_one_seed_fails_and_names_the_seed() -> None:
    bad = run(2, 1.0)
    bad = replace(bad, amp=replace(bad.amp, losses=losses(*CURVE[:-1], float("nan"))))
    observed = over(1.0, 1.0)
    assert judged(replace(observed, seeds=(*observed.seeds, bad))) == (
        "fail",
        "the amp loss is not finite at step 8 (seed 2)",
    )


def test_losses_that_are_equal_with_no_tolerance_at_all_pass() -> None:
    assert judged(over(1.0, 1.0, 1.0), max_loss_diff=0.0, loss_atol=0.0)[0] == "pass"


def test_a_loss_without_a_threshold_is_reported_over_its_seeds() -> None:
    verdict, reason = judged(over(1.5, 1.6, 1.4), max_loss_diff=None)
    assert verdict == "not_gated"
    assert reason.endswith("over 3 seeds (60% with seed 1)")


def test_a_loss_that_nobody_gates_and_that_is_not_finite_in_fp32_is_no_crash() -> None:
    bad = run(1, 1.0)
    bad = replace(bad, fp32=replace(bad.fp32, losses=losses(*(float("nan"),) * 8)))
    assert judged(seen(seeds=(bad,)), max_loss_diff=None)[0] == "not_gated"


def test_losses_that_are_all_zero_in_fp32_are_held_to_loss_atol_as_with_one_seed() -> None:
    def zeros(amp: float, seed: int) -> SeedRun:
        start = replace(OTHER, parameters=(str(seed),))
        fp32 = replace(FP32, losses=losses(*(0.0,) * 8), start=start)
        return SeedRun(seed, fp32, replace(AMP, losses=losses(*(amp + seed * 1e-5,) * 8)))

    for amp, expected in ((0.004, "pass"), (0.015, "fail")):
        first, *further = (zeros(amp, seed) for seed in range(5))
        zero = {"losses": first.fp32.losses}
        ours = {"losses": first.amp.losses}
        observed = seen(seeds=tuple(further), fp32=zero, amp=ours, floor=zero)
        verdict, reason = judged(observed, loss_atol=0.005)
        assert verdict == expected
        assert reason.startswith("0.004" if amp < 0.005 else "0.015")


def test_the_worst_of_several_losses_decides_over_seeds_too() -> None:
    def both(bad: float) -> dict[str, tuple[float, ...]]:
        return {"a": CURVE, "b": tuple(each * bad for each in CURVE)}

    observed = seen(
        fp32={"losses": both(1.0)},
        amp={"losses": both(1.5)},
        floor={"losses": both(1.0)},
        seeds=(
            SeedRun(1, replace(FP32, losses=both(1.1)), replace(AMP, losses=both(1.64))),
            SeedRun(2, replace(FP32, losses=both(0.9)), replace(AMP, losses=both(1.36))),
        ),
    )
    assert judged(observed)[0] == "fail"
    assert "of 'b' over 3 seeds" in judged(observed)[1]


def test_seeds_that_change_nothing_count_as_one() -> None:
    same = SeedRun(1, FP32, AMP)
    observed = seen(seeds=(same, replace(same, seed=2)))
    alone = judged(seen())
    assert judged(observed) == alone
    assert "every seed made the same training, so they count as one" in seeds.alike(observed)


def test_the_hardest_seed_is_judged_by_its_own_difference_alone() -> None:
    observed = over(1.0, 1.01, 1.05, 1.03, floor={"losses": losses(*scaled(2.0))})
    one = loss.of_hardest_seed(observed, Limits())
    assert (one.seed, one.seeds) == (2, ())
    assert one.amp.losses == observed.seeds[1].amp.losses
    assert one.fp32.losses == observed.seeds[1].fp32.losses
    assert (
        one.fp32.operators is FP32.operators
    )  # which only the first seed's step was inspected for
    assert judged(one, loss_atol=0.0)[0] == "fail"
    bad = replace(observed.seeds[0].amp, losses=losses(*CURVE[:-1], float("nan")))
    broken = replace(observed, seeds=(replace(observed.seeds[0], amp=bad), *observed.seeds[1:]))
    assert loss.of_hardest_seed(broken, Limits()).seed == 1
    first = over(1.5, 1.0, 1.0, seed=9)
    assert loss.of_hardest_seed(first, Limits()) == replace(first, seeds=())
    assert loss.of_hardest_seed(seen(), Limits()) == seen()


def test_seeds_that_a_trainer_overrules_count_as_one_although_atomics_differ() -> None:
    """Weights, inputs and the first loss are the same; what follows differs in the last digits."""

    def again(seed: int) -> SeedRun:
        curve = tuple(loss * (1 + seed * step * 1e-6) for step, loss in enumerate(CURVE))
        return SeedRun(seed, replace(FP32, losses=losses(*curve)), AMP)

    observed = seen(seeds=(again(1), again(2)))
    assert judged(observed) == judged(seen())
    assert "every seed made the same training" in seeds.alike(observed)


def test_seeds_that_differ_in_dropout_alone_do_differ() -> None:
    other = SeedRun(1, replace(FP32, losses=losses(*(loss * 1.01 for loss in CURVE))), AMP)
    assert loss.seeds_differ(seen(seeds=(other,)))


def test_seeds_that_share_their_weights_are_told() -> None:
    observed = over(1.0, 1.0)
    assert seeds.alike(observed) is None
    start = replace(OTHER, parameters=FP32.start.parameters)
    shared = replace(observed.seeds[0], fp32=replace(observed.seeds[0].fp32, start=start))
    assert "began with the same weights" in seeds.alike(replace(observed, seeds=(shared,)))


def test_the_ends_of_both_curves_by_seed() -> None:
    first, second = seeds.summed_up(over(1.0, 1.1, seed=7))
    assert (first.seed, second.seed) == (7, 1)
    assert second.amp["loss"] == pytest.approx(1.1 * second.fp32["loss"])
    assert str(second) == "1: +10%"
    assert seeds.summed_up(seen()) == ()


# The anchor in float64.

QUIET = {"losses": losses(*CURVE)}
NEAR = tuple(loss * (1 + 4e-8 * (-1) ** step) for step, loss in enumerate(CURVE))
CHAOS = {"losses": losses(*scaled(1.5, last=6))}  # rounding moves it by 50%


@pytest.mark.parametrize(("factor", "verdict"), [(1.03, "fail"), (1.021, "fail"), (1.019, "pass")])
def test_a_difference_within_the_drift_fails_if_rounding_does_not_explain_amp_s_error(
    factor, verdict
) -> None:
    observed = seen(amp={"losses": losses(*scaled(factor))}, floor=CHAOS, anchor=losses(*NEAR))
    assert judged(observed, loss_atol=0.0)[0] == verdict
    without = replace(observed, anchor=None)
    assert judged(without, loss_atol=0.0)[0] == ("inconclusive" if verdict == "fail" else "pass")


def test_a_difference_that_rounding_explains_stays_without_an_answer() -> None:
    rough = tuple(loss * (1 + 1e-5 * (-1) ** step) for step, loss in enumerate(CURVE))
    observed = seen(amp={"losses": losses(*scaled(1.03))}, floor=CHAOS, anchor=losses(*rough))
    assert judged(observed, loss_atol=0.0)[0] == "inconclusive"


def test_both_errors_are_told_where_the_loss_fails() -> None:
    observed = seen(amp={"losses": losses(*scaled(1.03))}, floor=QUIET, anchor=losses(*NEAR))
    assert judged(observed, loss_atol=0.0)[1].endswith(
        "is beyond 2.0%; amp's error against float64 is 750 k times fp32's, and rounding to "
        "bfloat16 explains 65.5 k times"
    )


def test_an_fp32_loss_that_is_exact_by_luck_counts_as_rounded() -> None:
    found = anchor.errors(seen(anchor=losses(*CURVE)), "loss")
    assert found.reference_error == pytest.approx(2.0**-23 / 12**0.5)
    assert found.candidate_error == pytest.approx(0.001, rel=0.01)
    assert found.multiple == found.candidate_error / found.reference_error
    assert found.steps == len(CURVE)


def test_an_anchor_of_fewer_steps_is_compared_with_as_many() -> None:
    observed = seen(amp={"losses": losses(*CURVE[:4], *(9.0,) * 4)}, anchor=losses(*CURVE[:4]))
    assert anchor.errors(observed, "loss").candidate_error == 0
    assert anchor.errors(observed, "loss").steps == 4


@pytest.mark.parametrize(("dtype", "cut"), [("bfloat16", 5 * 2**16), ("float16", 15 * 2**13)])
def test_the_cut_is_the_dtype_s_that_ran(dtype, cut) -> None:
    for factor, is_beyond in ((0.9, False), (1.1, True)):
        error = factor * cut * 2.0**-23 / 12**0.5
        observed = seen(
            amp={"losses": losses(*scaled(1 + error))},
            anchor=losses(*CURVE),
            dtype=dtype,
            recipes=Recipes.autocast(dtype),
        )
        if dtype == "float16":  # the operators that ran say which
            ran = replace(IN_BF16, flops_by_dtype={"float16": 980, "float32": 20})
            observed = replace(observed, amp=replace(observed.amp, operators=ran))
        found = anchor.errors(observed, "loss")
        assert found.dtype == dtype
        assert anchor.is_beyond_rounding(found) is is_beyond


@pytest.mark.parametrize("where", ["anchor", "amp", "fp32"])
def test_losses_that_are_not_finite_have_no_errors(where) -> None:
    bad = losses(*CURVE[:-1], float("inf"))
    given = {where: bad if where == "anchor" else {"losses": bad}}
    assert anchor.errors(seen(**{"anchor": losses(*CURVE), **given}), "loss") is None


@pytest.mark.parametrize(
    ("observed", "wanted"),
    [
        (seen(), False),  # it passes
        (seen(amp={"losses": losses(*scaled(1.1))}), True),
        (seen(amp={"losses": losses(*scaled(1.1))}, floor=CHAOS), True),
        (over(1.0, 1.01), True),
        (seen(amp={"losses": losses(*CURVE[:-1], float("nan"))}), False),
        (seen(amp={"losses": losses(*scaled(1.1)), "moved": False}, fp32={"moved": True}), False),
        (
            seen(
                amp={
                    "losses": losses(*scaled(1.1)),
                    "operators": replace(
                        IN_BF16, draws=("other",), random_dtypes=frozenset({"bfloat16"})
                    ),
                }
            ),
            False,
        ),
        (
            seen(
                amp={"losses": losses(*scaled(1.1))},
                recipes=Recipes(Recipe.parse("tf32"), Recipe.parse("bf16")),
            ),
            False,
        ),
        (
            seen(
                amp={"losses": losses(*scaled(1.1))},
                fp32={"operators": replace(IN_FP32, hidden=("a CUDA graph",))},
            ),
            False,
        ),
        (
            seen(amp={"losses": losses(*scaled(1.1)), "start": replace(FP32.start, shared=True)}),
            False,
        ),
    ],
    ids=[
        "passes",
        "fails",
        "open",
        "seeds",
        "nan",
        "stands still",
        "other draws",
        "tf32",
        "hidden",
        "shared",
    ],
)
def test_the_anchor_is_asked_for_where_it_can_say_more(observed, wanted) -> None:
    assert loss.wants_anchor(observed, Limits(loss_atol=0.0)) is wanted


@pytest.mark.parametrize(
    ("exact", "why"),
    [
        (losses(*NEAR), None),
        (losses(*NEAR[:4]), None),
        (losses(*NEAR[:3]), "a step takes too long in it (only 3 steps in time)"),
        (losses(2.4, *NEAR[1:]), "the first loss is 2.4 in it, and 2.3 in float32"),
        (losses(a=NEAR), "the step returned the losses ['a'] in it"),
        (losses(float("nan"), *NEAR[1:]), "its losses are not finite"),
        (losses(*CURVE), "its losses are fp32's to the last digit, so it ran in float32"),
    ],
)
def test_an_anchor_that_is_another_training_is_refused(exact, why) -> None:
    assert anchor.unusable(exact, losses(*CURVE)) == why


def test_a_pass_with_an_error_that_rounding_does_not_explain_is_told() -> None:
    observed = over(1.015, 1.016, 1.014, anchor=losses(*NEAR))
    assert judged(observed, loss_atol=0.0)[0] == "pass"
    (note,) = loss.errors_behind_a_pass(observed, Limits())
    assert note.startswith("the loss passes, but amp's error against float64 is")
    assert list(loss.errors_behind_a_pass(over(1.0, 1.001, anchor=losses(*NEAR)), Limits())) == []
    failing = over(1.5, 1.6, 1.4, anchor=losses(*NEAR))
    assert list(loss.errors_behind_a_pass(failing, Limits())) == []
