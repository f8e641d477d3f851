"""The parity runs: their order, what they start from, and how the noise floor is taken."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pytest_amp.lab.machine.device import Device
from pytest_amp.lab.phases import parity
from pytest_amp.lab.watch.fingerprint import digest, digest_in_any_dtype, first_inputs
from pytest_amp.lab.watch.memory import peak_memory
from tests.helpers.lab import CPU, codes, measure, train, workbench


def mlp(arm):
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss_of():
        return nn.functional.cross_entropy(model(torch.randn(16, 8)), torch.randint(4, (16,)))

    return train(arm, optimizer, loss_of)


def told(setup):
    """The setup, and a list that its builds and steps write down."""
    story = []

    def telling(arm):
        story.append(f"build {arm.name}")
        step = setup(arm)

        def telling_step():
            story.append(arm.name)
            return step()

        arm.on_teardown(lambda: story.append(f"end {arm.name}"))
        return telling_step

    return telling, story


def test_amp_runs_first_then_fp32_then_the_inspection_and_the_floor_each_alone() -> None:
    setup, story = told(mlp)
    measure(setup, steps=4)
    assert story == [
        *("build amp", *["amp"] * 4, "end amp"),
        *("build fp32", *["fp32"] * 4, "end fp32"),
        *("build fp32", *["fp32"] * 2, "end fp32"),  # the first step, and the record
        *("build amp", *["amp"] * 3, "end amp"),  # likewise, and casts that went stale
        *("build fp32", *["fp32"] * 4, "end fp32"),
    ]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_fewest_steps_are_enough_for_a_report(steps) -> None:
    report = measure(mlp, steps=steps)
    assert len(report.fp32.losses) == len(report.amp.losses) == steps
    assert report.verdict == "pass"


def test_both_arms_start_alike_and_learn_alike() -> None:
    report = measure(mlp, steps=12)
    assert codes(report) == []
    assert report.fp32.losses[0] == pytest.approx(report.amp.losses[0], rel=0.01)
    assert report.fp32.losses != report.amp.losses
    assert report.loss_diff < 0.02


def test_another_seed_is_another_run() -> None:
    assert measure(mlp, seed=1).fp32.losses != measure(mlp, seed=2).fp32.losses
    assert measure(mlp, seed=1).fp32.losses == measure(mlp, seed=1).fp32.losses


def test_a_setup_that_seeds_nothing_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    measure(mlp)
    assert torch.equal(torch.rand(3), expected)


# The noise floor.


def nudged(values, dtype=torch.bfloat16):
    """How far the nudge moves each of the values."""
    before = torch.as_tensor(values)
    weight = nn.Parameter(before.clone())
    parity.nudge([weight], dtype, 0)
    return weight.detach() - before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_nudge_moves_each_weight_by_one_ulp_of_the_amp_dtype(dtype) -> None:
    values = [1.0, -1.0, 1.5, 0.75, 3.0, -100.0, 1e-3]
    ulps = [torch.finfo(dtype).eps * 2 ** math.floor(math.log2(abs(v))) for v in values]
    assert nudged(values, dtype).abs().tolist() == pytest.approx(ulps, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_every_dtype_are_nudged(dtype) -> None:
    assert nudged(torch.tensor([1.0, 2.0], dtype=dtype)).abs().tolist() == [2**-7, 2**-6]


def test_the_nudge_leaves_zeros_alone_since_they_round_to_themselves() -> None:
    moved = nudged([0.0, 1.0, 0.0])
    assert moved[0] == moved[2] == 0
    assert moved[1] != 0


def test_the_nudge_goes_up_and_down_and_draws_from_a_generator_of_its_own() -> None:
    before = torch.get_rng_state()
    ups = int((nudged([1.0] * 200) > 0).sum())
    assert torch.equal(torch.get_rng_state(), before)
    assert 60 < ups < 140


@pytest.mark.parametrize(
    "turn", [lambda x: x, lambda x: x.t(), lambda x: x.view(64, 16, 8, 1).transpose(1, 3)]
)
def test_all_of_a_large_weight_is_nudged_however_it_lies_in_memory(turn) -> None:
    moved = nudged(turn(torch.ones(128, 64)))
    assert set(moved.abs().flatten().tolist()) == {2**-7}


def test_looking_at_a_large_weight_and_nudging_it_take_little_room() -> None:
    weight = nn.Parameter(torch.randn(2**22))  # 16 MiB
    for look in (
        lambda: digest([weight]),
        lambda: digest_in_any_dtype(weight),
        lambda: parity.nudge([weight], torch.bfloat16, 0),
    ):
        with peak_memory(Device(CPU)) as memory:
            look()
            assert memory.stop().peak_bytes < 2**19


def test_the_nudge_waits_for_the_first_step_of_an_optimizer() -> None:
    def accumulating(arm):
        model = nn.Linear(8, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x, calls = torch.randn(16, 8), iter(range(1, 99))

        def step():
            with arm.autocast():
                loss = model(x).square().mean()
            loss.backward()
            if next(calls) % 4 == 0:
                optimizer.step()
                optimizer.zero_grad()
            return loss

        return step

    bench = workbench(accumulating)
    fp32, _ = parity.run(bench, "fp32", 8)
    floor = parity.floor(bench, 8, None, other_stream=False)
    assert floor.before_nudge == 4
    assert fp32.losses["loss"][:4] == floor.losses["loss"][:4]
    assert fp32.losses["loss"][4] != floor.losses["loss"][4]


def test_the_floor_repeats_the_fp32_run_up_to_the_nudge_and_drifts_after_it() -> None:
    bench = workbench(mlp)
    fp32, _ = parity.run(bench, "fp32", 8)
    floor = parity.floor(bench, 8, None, other_stream=False)
    plain, nudged = fp32.losses["loss"], floor.losses["loss"]
    assert floor.before_nudge == 2
    assert plain[:2] == nudged[:2]
    assert all(a != b for a, b in zip(plain[2:], nudged[2:], strict=True))
    assert nudged == pytest.approx(plain, rel=0.02)
    assert floor.start == fp32.start


def test_another_stream_draws_other_numbers_after_the_nudge() -> None:
    bench = workbench(mlp)
    same = parity.floor(bench, 8, None, other_stream=False).losses["loss"]
    other = parity.floor(bench, 8, None, other_stream=True).losses["loss"]
    assert same[:2] == other[:2]
    assert max(abs(a - b) for a, b in zip(same[2:], other[2:], strict=True)) > 0.02


def noisy(draw):
    def setup(arm):
        model = nn.Linear(64, 64)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x = torch.randn(8, 64)
        return train(arm, optimizer, lambda: draw(model(x)).square().mean())

    return setup


def test_dropout_that_draws_alike_in_both_arms_has_a_floor_of_rounding_only() -> None:
    report = measure(noisy(lambda h: nn.functional.dropout(h, 0.5)), steps=12)
    assert report.gate("loss_diff").verdict == "pass"
    assert report.noise_floor < 0.02


def test_noise_that_the_amp_dtype_draws_otherwise_widens_the_floor() -> None:
    report = measure(noisy(lambda h: h + 3 * torch.randn_like(h)), steps=12)
    assert report.gate("loss_diff").verdict in ("pass", "inconclusive")
    assert report.noise_floor > 0.02
    assert report.verdict != "fail"


# Where an arm starts.


def test_the_starts_of_two_builds_from_one_seed_have_the_same_digests() -> None:
    bench = workbench(mlp)
    fp32, _ = parity.run(bench, "fp32", 2)
    amp, _ = parity.run(bench, "amp", 2)
    assert fp32.start == amp.start
    assert len(fp32.start.parameters) == 4
    assert len(fp32.start.inputs) == 1
    other, _ = parity.run(workbench(mlp, seed=1), "fp32", 2)
    assert all(a != b for a, b in zip(fp32.start.parameters, other.start.parameters, strict=True))
    assert fp32.start.inputs != other.start.inputs


def test_a_step_without_optimizer_and_module_has_no_start_to_compare() -> None:
    run, _ = parity.run(workbench(lambda _: lambda: 1.0), "fp32", 2)
    assert run.start.parameters is None
    assert run.start.inputs is None


@pytest.mark.parametrize(
    "value",
    [
        torch.randn(3, 4),
        torch.randn(3, 4, dtype=torch.float64),
        torch.randn(3, 4).to(torch.bfloat16),
        torch.randint(9, (5,)),
        torch.tensor([True, False]),
        torch.randn(3, dtype=torch.complex64),
        torch.randn(4, 3).t(),
        torch.randn(()),
    ],
)
def test_a_digest_tells_values_apart(value) -> None:
    changed = value.clone()
    first = (0,) * changed.ndim
    changed[first] = ~changed[first] if changed.dtype is torch.bool else changed[first] + 1
    assert digest([value]) == digest([value.clone()])
    assert digest([value]) != digest([changed])


@pytest.mark.parametrize("take", [digest_in_any_dtype, lambda tensor: digest([tensor])])
def test_a_digest_tells_orders_apart_also_beyond_its_first_piece(take) -> None:
    plain = torch.arange(2**13)
    swapped = plain.clone()
    swapped[[5000, 6000]] = swapped[[6000, 5000]]
    assert take(plain) != take(swapped)
    assert take(plain.float()) != take(swapped.float())


def test_a_digest_in_any_dtype_is_the_same_where_the_values_are() -> None:
    mask = torch.rand(100) > 0.5
    kinds = [torch.bool, torch.float32, torch.float16, torch.bfloat16, torch.float64]
    assert len({digest_in_any_dtype(mask.to(kind)) for kind in kinds}) == 1
    assert digest_in_any_dtype(mask) != digest_in_any_dtype(~mask)


def test_a_digest_tells_types_and_shapes_apart_and_takes_what_has_no_bits() -> None:
    zeros = torch.zeros(4)
    variants = [
        zeros,
        zeros.double(),
        zeros.view(2, 2),
        zeros.to_sparse(),
        zeros.to("meta"),
        "text",
        3,
        None,
        object(),
    ]
    texts = digest(variants)
    assert len(set(texts[:4])) == 4
    assert texts[-4:] == ("'text'", "3", "NoneType", "object")


def test_only_the_first_modules_inputs_are_looked_at_and_the_call_is_put_back() -> None:
    original = nn.Module.__call__
    outer, inner, seen = nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 4), []
    x, mask = torch.randn(2, 4), torch.ones(2)
    with first_inputs(seen):
        outer(x)
        assert nn.Module.__call__ is original
        inner(mask.new_ones(1, 4))
    assert [each.digests for each in seen] == [digest([x])]
    norm, *sums = seen[0].samples[0]
    assert norm == pytest.approx(float(x.norm()))
    assert all(abs(each) <= float(x.abs().sum()) for each in sums)
    with pytest.raises(ZeroDivisionError), first_inputs([]):
        raise ZeroDivisionError
    assert nn.Module.__call__ is original


def test_inputs_that_come_from_parameters_are_no_data() -> None:
    seen = []
    with first_inputs(seen):
        nn.ReLU()(nn.Parameter(torch.ones(2)) * 2)
    assert seen == []


def test_keyword_inputs_and_nested_ones_are_seen_too() -> None:
    class Model(nn.Module):
        def forward(self, batch, *, scale):
            return batch["x"] * scale

    seen, x = [], torch.randn(3)
    with first_inputs(seen):
        Model()({"x": x}, scale=2.0)
    assert [each.digests for each in seen] == [digest([x, 2.0])]


# Small losses.


def regression(slow):
    """Targets of 0.05; `slow`: what the amp arm's learning rate is multiplied by."""

    def setup(arm):
        model, x = nn.Linear(16, 1), torch.randn(64, 16)
        y = 0.05 * torch.tanh(x.mean(1, keepdim=True))
        lr = 0.2 * (slow if arm.enabled else 1.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        return train(arm, optimizer, lambda: nn.functional.mse_loss(model(x).float(), y))

    return setup


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("slow", "verdict"), [(1.0, "pass"), (0.3, "fail")])
def test_a_small_loss_is_held_to_what_the_dtype_can_reach(slow, verdict, dtype) -> None:
    report = measure(regression(slow), dtype=dtype, steps=60)
    gate = report.gate("loss_diff")
    assert report.fp32.losses[-1] < 0.005
    assert gate.verdict == verdict, gate.reason


def test_the_rounded_run_is_made_for_a_default_that_decides_alone() -> None:
    def builds(**given):
        setup, story = told(regression(0.3))
        measure(setup, dtype="bfloat16", steps=60, **given)
        return story.count("build fp32")

    assert builds() == builds(loss_atol=0.005) + 2  # and one in float64, since it fails
