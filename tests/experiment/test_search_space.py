"""What a tuning tries: what the device can run, what the user wants, what the setup offers."""

from __future__ import annotations

import pytest

from pytest_amp import AmpError, Recipe
from pytest_amp.experiment import search_space as spaces
from pytest_amp.settings.precision import EMULATED, NATIVE, Abilities
from pytest_amp.settings.resolved import resolve

CPU = Abilities("a CPU", float8={"tensorwise": EMULATED, "rowwise": EMULATED})
HOPPER = Abilities("H100", tf32=True, float8={"tensorwise": NATIVE, "rowwise": NATIVE})


def space(able=CPU, kind="cpu", first="bf16", **only):
    return spaces.space_of(
        able, kind, {name: text.split(",") for name, text in only.items()}, first
    )


def test_what_the_device_has_is_tried_and_what_is_left_out_says_why() -> None:
    found = space()
    assert [*found.wanted("recipe")] == ["bf16", "fp32", "fp16", "bf16-true", "fp16-true"]
    assert [*found.wanted("tf32")] == ["no"]
    assert set(found.left_out) == {"fp8", "fp8-rowwise", "tf32"}
    assert "a CPU has no float8" in found.left_out["fp8"]
    on_hopper = space(HOPPER, "cuda")
    assert on_hopper.left_out == {}
    assert {"fp8", "fp8-rowwise"} < {*on_hopper.wanted("recipe")}
    assert [*on_hopper.wanted("tf32")] == ["no", "yes"]
    assert "reduce-overhead" in on_hopper.wanted("compile")


def test_the_loss_scale_is_a_choice_only_where_there_is_one() -> None:
    found = space().offering("batch_size", (8, 16))
    assert [*found.names_for("fp16")] == [
        "compile", "channels_last", "tf32", "init_scale", "growth_interval", "batch_size",
    ]  # fmt: skip
    for recipe in ("bf16", "fp32", "fp16-true"):
        assert [*found.names_for(recipe)] == ["compile", "channels_last", "tf32", "batch_size"]


def test_all_choices_are_distinct_and_each_is_a_recipe_that_runs() -> None:
    found = space(recipe="bf16,fp16", init_scale="1024,64", growth_interval="100")
    choices = [*found.choices()]
    assert len(choices) == 2 * 2 + 2 * 2 * 2
    assert len({str(choice) for choice in choices}) == len(choices)
    for choice in choices:
        settings = spaces.settings_of(choice, resolve([("marker", {"dtype": "bfloat16"})]))
        assert settings.candidate == spaces.recipe_of(choice)
        assert settings.dtype is None
        if choice["recipe"] == "fp16":
            assert (settings.init_scale, settings.growth_interval) == (choice["init_scale"], 100)


def test_a_choice_is_told_on_one_line() -> None:
    choice = {"recipe": "fp16", "compile": "default", "channels_last": "yes", "tf32": "no",
              "init_scale": 1024.0, "growth_interval": 2000, "batch_size": 8}  # fmt: skip
    assert spaces.recipe_of(choice) == Recipe.parse("fp16+compile+channels_last")
    assert spaces.described(choice) == "fp16+compile+channels_last init_scale=1024 batch_size=8"


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ({"recipe": "fp17"}, "--only recipe=fp17: 'fp17' is not a recipe (did you mean fp16?)"),
        ({"recipe": "bf16+compile"}, "more than one of"),
        ({"recipe": "fp8"}, "--only recipe=fp8: a CPU has no float8"),
        ({"tf32": "yes"}, "--only tf32=yes: a CPU has no TF32"),
        ({"compile": "fast"}, "--only compile=fast: compile is 'fast', which is not one of"),
        ({"channels_last": "maybe"}, "write channels_last=no, yes or both"),
        ({"init_scale": "0"}, "--only init_scale=0: init_scale: '0' is not a loss scale above 0"),
        ({"growth_interval": "0.5"}, "is not a whole number from 1"),
    ],
)
def test_a_wrong_restriction_names_the_choice_and_what_is_valid(only, message) -> None:
    with pytest.raises(AmpError) as told:
        space(**only)
    assert message in str(told.value)


def test_a_restriction_of_what_the_setup_offers_is_checked_against_it() -> None:
    found = space(batch_size="16").offering("batch_size", (8, 16))
    found.check_only()
    assert found.wanted("batch_size") == [16]
    with pytest.raises(AmpError, match="--only batch_size=32: the setup offers 8, 16"):
        space(batch_size="32").offering("batch_size", (8, 16)).check_only()
    with pytest.raises(AmpError, match=r"--only batchsize=8: the choices are recipe, .*batch_size"):
        space(batchsize="8").offering("batch_size", (8, 16)).check_only()


def test_what_a_setup_can_t_offer_is_refused() -> None:
    with pytest.raises(AmpError, match="tune tries recipe itself"):
        space().offering("recipe", ("a", "b"))
    with pytest.raises(AmpError, match="offer a name for it"):
        space().offering("optimizer", (object(),))
    with pytest.raises(AmpError, match="offer the same values in every trial"):
        space().offering("batch_size", (8, 16)).offering("batch_size", (8, 32))


@pytest.mark.parametrize("text", ["recipe", "recipe=", "=bf16,", "bf16"])
def test_a_restriction_that_is_none_is_refused(text: str) -> None:
    if text.startswith("="):
        assert spaces.read_only([text]) == {"": ["bf16"]}  # which `check_only` refuses
        return
    with pytest.raises(AmpError, match="write NAME=VALUE,VALUE"):
        spaces.read_only([text])
