"""A threshold by device: the most specific key wins; one that no device answers to is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_amp.settings.numbers import Range
from pytest_amp.settings.thresholds import DEVICE_TYPES, DeviceNames, Threshold, threshold
from tests.helpers.project import STEP, gate, measure

RATIO = Range(0, 1000, False, True, "a ratio")
H100 = DeviceNames("NVIDIA H100 80GB HBM3", "sm90", "cuda")
CPU = DeviceNames("Intel(R) Xeon(R) Processor", None, "cpu")


def parse(value: object) -> Threshold:
    return threshold(value, RATIO)


def test_from_the_device_s_name_to_the_star_the_most_specific_key_wins() -> None:
    keys = {"*": 1.0, "cuda": 2.0, "sm90": 3.0, "*H100*": 4.0, "*H100 80GB*": 5.0}
    while keys:
        assert parse(keys).on(H100) == max(keys.values())
        del keys[max(keys, key=lambda key: keys[key])]


def test_the_order_in_which_keys_are_written_does_not_matter() -> None:
    keys = [("*H100*", 4.0), ("cuda", 2.0), ("*", 1.0), ("sm90", 3.0)]
    assert parse(dict(keys)).on(H100) == parse(dict(reversed(keys))).on(H100) == 4.0


def test_a_name_matches_in_any_case_and_in_full() -> None:
    assert parse({"*h100*": 2.0}).on(H100) == 2.0
    assert parse({"nvidia h100 80gb hbm3": 2.0}).on(H100) == 2.0
    assert parse({"NVIDIA H100": 2.0}).on(H100) is None
    assert parse({"*H100*": 2.0}).on(CPU) is None


def test_one_number_holds_everywhere() -> None:
    assert parse(1.3).on(H100) == parse("1.3").on(CPU) == 1.3


def test_none_for_a_device_unsets_what_a_wider_key_asks_for() -> None:
    only_gpus = parse({"*": 1.3, "cpu": None})
    assert only_gpus.on(CPU) is None
    assert only_gpus.on(H100) == 1.3
    assert parse("*=1.3,cpu=none") == only_gpus


def test_the_command_line_s_spelling_says_the_same_as_a_mapping() -> None:
    assert parse("cuda=1.3, cpu=1.0,NVIDIA H100 80GB HBM3=1.6") == parse(
        {"cuda": 1.3, "cpu": 1.0, "NVIDIA H100 80GB HBM3": 1.6}
    )


@pytest.mark.parametrize("key", ["gpu", "CUDA", "nvidia", "sm", "", "cuda:0"])
def test_a_key_that_no_device_answers_to_is_refused_with_the_valid_ones(key: str) -> None:
    with pytest.raises(ValueError, match="no device answers to") as error:
        parse({key: 1.3})
    for valid in (*DEVICE_TYPES, "sm90", "*H100*" if key != "CUDA" else "*CUDA*"):
        assert valid in str(error.value)


@pytest.mark.parametrize("key", ["H100", "A100", "MI300X"])
def test_part_of_a_name_is_refused_with_the_glob_that_would_match(key: str) -> None:
    with pytest.raises(ValueError, match="no device answers to") as error:
        parse(f"{key}=1.3")
    assert f"*{key}*" in str(error.value)


def test_a_mapping_must_name_something_and_its_keys_must_be_text() -> None:
    with pytest.raises(ValueError, match="an empty mapping gates nothing"):
        parse({})
    with pytest.raises(ValueError, match="device key 90 is not text"):
        parse({90: 1.3})
    with pytest.raises(ValueError, match="'cpu' is not DEVICE=NUMBER"):
        parse("cuda=1.3,cpu")


def test_each_number_of_a_mapping_must_be_in_range() -> None:
    with pytest.raises(ValueError, match="nan is not a ratio"):
        parse({"cuda": 1.3, "cpu": float("nan")})


keys = st.sampled_from([*DEVICE_TYPES, "*", "sm70", "sm90", "*H100*", "NVIDIA*", "*Xeon*"])
ratios = st.floats(min_value=1e-6, max_value=1000)


@given(st.dictionaries(keys, ratios, min_size=1))
def test_what_is_written_back_parses_to_the_same(by_device: dict[str, float]) -> None:
    parsed = parse(by_device)
    plain = parsed.as_json()
    assert parse(plain) == parsed
    if isinstance(plain, dict):
        assert parse(",".join(f"{key}={value!r}" for key, value in plain.items())) == parsed


@given(st.dictionaries(keys, ratios, min_size=1), ratios)
def test_a_star_answers_for_every_device_that_nothing_else_names(
    by_device: dict[str, float], everywhere: float
) -> None:
    by_device.pop("*", None)
    alone = Threshold(by_device)
    for device in (H100, CPU):
        found = alone.on(device)
        with_star = Threshold({**by_device, "*": everywhere}).on(device)
        assert with_star == (everywhere if found is None else found)


def test_on_a_device_that_no_key_names_the_metric_is_reported_and_not_gated(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(test_it=STEP.replace("amp\n", "amp(min_memory_reduction={'cuda': 0.9})\n"))
    result, reports = measure(project, "--amp-device=cpu")
    result.assert_outcomes(passed=1)
    memory = gate(reports["test_step"], "memory_reduction")
    assert memory["verdict"] == "not_gated"
    assert memory["threshold"] is None
    assert memory["value"] < 0.9
    assert reports["test_step"]["settings"]["min_memory_reduction"]["value"] == {"cuda": 0.9}


def test_the_key_of_this_device_gates(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP)
    result, reports = measure(
        project, "--amp-device=cpu", "--amp-min-memory-reduction=cuda=0.1,cpu=0.9"
    )
    result.assert_outcomes(failed=1)
    assert gate(reports["test_step"], "memory_reduction")["threshold"] == 0.9


@pytest.mark.parametrize(
    "key",
    ["cuda", "rocm", "xpu", "mps", "sm90", "*H100*", "NVIDIA A10", "*RTX*", "*MI300X*", "*GB200*"],
)
def test_a_key_that_means_an_accelerator(key: str) -> None:
    assert parse({key: 1.3, "*": 1}).accelerators == (key,)


@pytest.mark.parametrize(
    "key",
    ["*", "cpu", "*EPYC*", "*Xeon*", "Intel(R) Core(TM) i7", "*intel*", "*AMD*", "Neoverse-V2"],
)
def test_a_key_that_means_a_processor_or_anything(key: str) -> None:
    assert parse({key: 1.3}).accelerators == ()


def test_a_key_that_is_unset_means_nothing() -> None:
    unset = parse({"cuda": None, "cpu": 1.0})
    assert unset.accelerators == ()
    assert unset.gated == ("cpu",)
    assert unset.names(H100)
    assert unset.on(H100) is None
