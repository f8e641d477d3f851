"""The one table of settings: what it accepts, what it refuses, and which level wins."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_amp.settings import table as settings
from pytest_amp.settings.parsers import STRICT_KINDS
from pytest_amp.settings.resolved import resolve
from pytest_amp.settings.table import BY_NAME, TABLE
from pytest_amp.settings.thresholds import DeviceNames
from tests.helpers.project import STEP, measure

CPU = DeviceNames("a CPU", None, "cpu")


def parse(name: str, value: object) -> object:
    return settings.parse(BY_NAME[name], value)


def threshold(value: object, name: str = "min_speedup") -> float | None:
    resolved = getattr(resolve([("marker", {name: value})]), name)
    return None if resolved is None else resolved.on(CPU)


def test_without_any_level_everything_is_the_default() -> None:
    resolved = resolve([])
    assert resolved.min_speedup is None
    assert resolved.max_loss_diff is not None
    assert resolved.max_loss_diff.on(CPU) == 0.02
    assert (resolved.steps, resolved.warmup, resolved.max_time) == (20, 3, 30.0)
    assert (resolved.error_rate, resolved.seed, resolved.loss_atol) == (0.01, 0, 0.005)
    assert set(resolved.sources.values()) == {"default"}


def test_the_first_level_that_names_a_setting_wins_and_is_recorded() -> None:
    resolved = resolve(
        [
            ("override", {"steps": "1"}),
            ("marker", {"steps": 2, "seed": 2}),
            ("cli", {"steps": "3", "seed": "3", "warmup": "3"}),
            ("ini", {"steps": "4", "seed": "4", "warmup": "4", "max_time": "4"}),
        ]
    )
    assert (resolved.steps, resolved.seed, resolved.warmup, resolved.max_time) == (1, 2, 3, 4.0)
    assert [resolved.sources[name] for name in ("steps", "seed", "warmup", "max_time")] == [
        "override", "marker", "cli", "ini",
    ]  # fmt: skip


def test_markers_beat_the_command_line_which_beats_the_ini_file(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\namp_seed = 4\namp_warmup = 4\namp_max_time = 4")
    project.makepyfile(test_it=STEP.replace("amp\n", "amp(seed=2)\n"))
    _, reports = measure(project, "--amp-seed=3", "--amp-warmup=3")
    given = reports["test_step"]["settings"]
    assert given["seed"] == {"value": 2, "from": "marker"}
    assert given["warmup"] == {"value": 3, "from": "cli"}
    assert given["max_time"] == {"value": 4.0, "from": "ini"}
    assert given["error_rate"] == {"value": 0.01, "from": "default"}


def test_markers_of_function_class_and_module_merge_key_by_key(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import pytest
        import torch.nn.functional as F

        pytestmark = pytest.mark.amp(seed=1, warmup=1, max_time=1)

        @pytest.mark.amp(seed=2, warmup=2)
        class TestStep:
            @pytest.mark.amp(seed=3)
            def test_step(self, model, optimizer, batch):
                return F.cross_entropy(model(batch[0]), batch[1])
        """
    )
    _, reports = measure(project)
    given = reports["TestStep::test_step"]["settings"]
    assert [given[name]["value"] for name in ("seed", "warmup", "max_time")] == [3, 2, 1.0]


@pytest.mark.parametrize("unset", [None, "none", " None "])
def test_none_unsets_what_a_weaker_level_asks_for(unset: object) -> None:
    for name, weaker in (("min_speedup", 1.3), ("max_loss_diff", 0.1), ("min_coverage", 0.5)):
        resolved = resolve([("marker", {name: unset}), ("cli", {name: weaker})])
        assert getattr(resolved, name) is None
        assert resolved.sources[name] == "marker"


def test_none_gives_a_setting_that_must_have_a_value_its_default_back() -> None:
    resolved = resolve([("marker", {"steps": None}), ("ini", {"steps": "7"})])
    assert resolved.steps == 20


def test_ignore_is_the_union_of_all_levels_with_the_closest_reason() -> None:
    resolved = resolve(
        [
            ("marker", {"ignore": {"AMP402@decoder.*": "tied weights", "AMP1": "close"}}),
            ("marker", {"ignore": ["AMP1", "AMP3"]}),
            ("ini", {"ignore": "AMP401 AMP006"}),
        ]
    )
    assert set(resolved.ignore) == {"AMP402@decoder.*", "AMP1", "AMP3", "AMP401", "AMP006"}
    assert resolved.ignore["AMP1"] == "close"
    assert resolved.ignore["AMP402@decoder.*"] == "tied weights"


def test_select_is_not_a_union() -> None:
    resolved = resolve([("marker", {"select": "AMP2"}), ("ini", {"select": "AMP1 AMP3"})])
    assert resolved.select == ("AMP2",)


@pytest.mark.parametrize("all_rules", ["all", ["all"]])
def test_select_all_is_every_rule(all_rules: object) -> None:
    assert parse("select", all_rules) == parse("select", "AMP")


def test_strict_bare_or_all_is_every_kind() -> None:
    assert parse("strict", "all") == parse("strict", True) == frozenset(STRICT_KINDS)
    assert parse("strict", "device,baseline") == {"device", "baseline"}


def test_a_dtype_may_be_given_as_torch_names_it() -> None:
    import torch

    assert parse("dtype", torch.bfloat16) == "bfloat16"
    assert parse("dtype", "torch.float16") == "float16"
    assert parse("dtype", "auto") is None


NOT_RATIOS = [math.nan, math.inf, -math.inf, "nan", "inf", -1, 0, 1e9, "fast", True, [], b"2"]


@pytest.mark.parametrize("value", NOT_RATIOS, ids=repr)
def test_a_speedup_must_be_a_sensible_ratio(value: object) -> None:
    with pytest.raises(ValueError, match="a ratio above 0 and at most 1000") as error:
        parse("min_speedup", value)
    assert str(error.value).startswith(f"min_speedup: {value!r} is not")


@pytest.mark.parametrize(
    ("name", "value", "valid"),
    [
        ("min_memory_reduction", 1, "a fraction below 1"),
        ("min_memory_reduction", math.nan, "a fraction below 1"),
        ("max_loss_diff", -0.1, "from 0 to 100"),
        ("max_loss_diff", math.inf, "from 0 to 100"),
        ("loss_atol", -1, "a finite number of 0 or more"),
        ("loss_atol", "cuda=1", "a finite number of 0 or more"),
        ("min_coverage", 1.1, "a share above 0 and at most 1"),
        ("min_coverage", 0, "a share above 0 and at most 1"),
        ("max_skipped_steps", -1, "a number of steps from 0 up"),
        ("max_skipped_steps", 1.5, "a whole number of steps"),
        ("dtype", "float8", "auto, float16, bfloat16"),
        ("dtype", "float32", "auto, float16, bfloat16"),
        ("device", "tpu", "auto, cpu, cuda, cuda:N, xpu, xpu:N, mps"),
        ("device", "cuda:", "auto, cpu, cuda, cuda:N, xpu, xpu:N, mps"),
        ("steps", 0, "a whole number from 1 to 1000000"),
        ("steps", 2.5, "a whole number from 1 to 1000000"),
        ("steps", 10**400, "a whole number from 1 to 1000000"),
        ("warmup", -1, "a whole number from 0 to 1000000"),
        ("max_time", 0, "above 0 and at most 86400"),
        ("error_rate", 0, "a probability from 1e-9 to 0.25"),
        ("error_rate", 0.5, "a probability from 1e-9 to 0.25"),
        ("seed", -1, "a whole number from 0 to 4294967295"),
        ("select", "amp203", "a rule's code such as AMP203 nor a prefix such as AMP2"),
        ("select", 203, "neither text nor a list"),
        ("ignore", "AMP2033", "a rule's code such as AMP203 nor a prefix such as AMP2"),
        ("ignore", {"decoder.*": "why"}, "a rule's code such as AMP203 nor a prefix such as AMP2"),
        ("static", "perhaps", "neither yes nor no"),
        ("strict", "devices", "device, inconclusive, unmeasured, baseline"),
    ],
)
def test_a_refusal_names_the_setting_and_says_what_is_valid(
    name: str, value: object, valid: str
) -> None:
    with pytest.raises(ValueError, match="^" + name) as error:
        parse(name, value)
    assert valid in str(error.value)


def test_an_unknown_setting_is_told_with_the_nearest_and_with_all() -> None:
    with pytest.raises(ValueError, match=r"did you mean min_speedup\?") as error:
        settings.entry_for("min_speedpu", marker=True)
    for entry in TABLE:
        assert (entry.name in str(error.value)) is entry.marker


@pytest.mark.parametrize("name", ["static", "strict"])
def test_what_concerns_the_whole_run_is_no_marker_keyword(name: str) -> None:
    settings.entry_for(name)
    with pytest.raises(ValueError, match=f"unknown setting '{name}'"):
        settings.entry_for(name, marker=True)


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.name)
def test_every_default_is_valid_and_is_what_its_text_parses_to(entry: settings.Entry) -> None:
    default = getattr(resolve([]), entry.name)
    assert settings.parse(entry, None if entry.default is None else entry.default) == default
    if entry.default_shown not in ("off", "none"):
        assert settings.parse(entry, entry.default_shown) == default


@given(st.floats(min_value=1e-6, max_value=1000))
def test_a_number_means_the_same_as_its_text(ratio: float) -> None:
    assert threshold(ratio) == threshold(repr(ratio)) == ratio


@given(st.one_of(st.floats(), st.integers(), st.text(), st.none(), st.booleans(), st.binary()))
def test_whatever_is_given_is_finite_and_in_range_unset_or_refused(value: object) -> None:
    try:
        parsed = threshold(value)
    except ValueError:
        return
    assert parsed is None or 0 < parsed <= 1000


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.sampled_from(TABLE))
def test_a_weaker_level_never_changes_what_a_stronger_one_says(
    strong: int, weak: int, entry: settings.Entry
) -> None:
    without = resolve([("marker", {"seed": strong})])
    below = resolve([("marker", {"seed": strong}), ("cli", {"seed": weak})])
    assert below == without
    if entry.name != "seed":
        assert below.sources[entry.name] == "default"


# -- presets -------------------------------------------------------------------------------------


def on_cpu(resolved, name):
    threshold = getattr(resolved, name)
    return None if threshold is None else threshold.on(CPU)


def test_a_preset_is_its_thresholds() -> None:
    resolved = resolve([("cli", {"preset": "classic"})])
    names = ("min_speedup", "min_memory_reduction", "max_accuracy_diff")
    assert [on_cpu(resolved, name) for name in names] == [1.5, 0.4, 0.01]
    assert {resolved.sources[name] for name in names} == {"cli"}
    assert on_cpu(resolved, "max_loss_diff") == 0.02


def test_a_threshold_of_ones_own_beats_the_preset_beside_it_and_below() -> None:
    beside = resolve([("cli", {"preset": "classic", "min_speedup": "1.1"})])
    assert on_cpu(beside, "min_speedup") == 1.1
    assert on_cpu(beside, "min_memory_reduction") == 0.4
    above = resolve([("marker", {"min_speedup": None}), ("cli", {"preset": "classic"})])
    assert on_cpu(above, "min_speedup") is None
    below = resolve([("cli", {"preset": "classic"}), ("ini", {"min_speedup": "1.1"})])
    assert on_cpu(below, "min_speedup") == 1.5


def test_a_preset_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="preset: 'modern' is not one of classic"):
        resolve([("cli", {"preset": "modern"})])
