"""AMP0xx: arms that can't be compared, and figures that can't be trusted."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import nn

from tests.catalogue.registry import faulty, healthy
from tests.catalogue.steps import BF16, batch, classifier, mlp, sgd, stepping
from tests.helpers.lab import SimulatedDevice, train

UNSEEDED = torch.Generator().manual_seed(1)

# AMP002 not-reproducible


def jittered(arm, jitter):
    """The plain step, with something in its loss that the seed does not reach."""
    model, (x, y) = mlp(), batch()
    return train(
        arm, sgd(model), lambda: F.cross_entropy(model(x).float(), y) * (1 + 0.01 * jitter())
    )


@faulty("AMP002", max_loss_diff=0.1)
def a_generator_of_its_own(arm):
    return jittered(arm, lambda: torch.rand((), generator=UNSEEDED))


@faulty("AMP002", max_loss_diff=0.1)
def the_systems_random_numbers(arm):
    system = random.SystemRandom()
    return jittered(arm, system.random)


@faulty("AMP002", max_loss_diff=0.1)
def a_generator_that_goes_on_from_arm_to_arm(arm):
    return jittered(arm, _GOES_ON.random)


_GOES_ON = random.Random(3)


@healthy("AMP002")
def a_generator_that_is_seeded_in_setup(arm):
    own = torch.Generator().manual_seed(7)
    return jittered(arm, lambda: torch.rand((), generator=own))


@healthy("AMP002")
def pythons_random_numbers(arm):
    return jittered(arm, random.random)


@healthy("AMP002")
def batches_of_varying_length(arm):
    model = mlp()

    def loss_of():
        x, y = batch(int(torch.randint(4, 20, ())))
        return F.cross_entropy(model(x).float(), y)

    return train(arm, sgd(model), loss_of)


# AMP003 arms-start-differ


@faulty("AMP003")
def data_that_is_drawn_anew(arm):
    model = mlp()
    x = torch.randn(16, 8, generator=UNSEEDED)
    y = torch.randint(4, (16,))
    return train(arm, sgd(model), lambda: F.cross_entropy(model(x).float(), y))


_SHARED = mlp()
_SHARED_OPTIMIZER = sgd(_SHARED)


@faulty("AMP003")
def a_model_and_its_optimizer_from_outside(arm):
    x, y = batch()
    return train(arm, _SHARED_OPTIMIZER, lambda: F.cross_entropy(_SHARED(x).float(), y))


_TRAINED = mlp()


@faulty("AMP003")
def a_model_from_outside_with_a_new_optimizer(arm):
    x, y = batch()
    return train(arm, sgd(_TRAINED), lambda: F.cross_entropy(_TRAINED(x).float(), y))


@faulty("AMP003")
def another_initialisation_in_the_amp_arm(arm):
    model = mlp()
    if arm.enabled:
        nn.init.normal_(model[0].weight, std=0.5)
    return classifier(arm, model)


@healthy("AMP003")
def data_that_is_drawn_in_the_step(arm):
    model = mlp()

    def loss_of():
        x, y = batch()
        return F.cross_entropy(model(x).float(), y)

    return train(arm, sgd(model), loss_of)


@healthy("AMP003", may_warn=("AMP003",))
def noise_like_the_hidden_state(arm):
    """A diffusion or VAE step: the dtype of `randn_like` is the activations'."""
    first, second, x = nn.Linear(8, 8), nn.Linear(8, 8), torch.randn(16, 8)

    def loss_of():
        mean = first(x)
        latent = mean + 0.1 * torch.randn_like(mean)
        return F.mse_loss(second(latent).float(), x)

    return train(arm, sgd(first, second), loss_of)


@healthy("AMP003")
def sharpness_aware_weights(arm):
    """They are moved uphill and back before the optimizer steps, which leaves some rounding."""
    model, (x, y) = mlp(), batch()
    optimizer, parameters = sgd(model), list(model.parameters())

    def loss_of():
        with arm.autocast():
            return F.cross_entropy(model(x).float(), y)

    def step():
        optimizer.zero_grad()
        uphill = torch.autograd.grad(loss_of(), parameters)
        with torch.no_grad():
            length = torch.stack([each.norm() for each in uphill]).norm()
            moves = [0.05 * each / length for each in uphill]
            torch._foreach_add_(parameters, moves)
        loss = loss_of()
        loss.backward()
        with torch.no_grad():
            torch._foreach_sub_(parameters, moves)
        optimizer.step()
        return loss

    return step


@healthy("AMP003")
def weights_that_are_loaded_in_both_arms(arm):
    model = mlp()
    model.load_state_dict(_WEIGHTS)
    return classifier(arm, model)


_WEIGHTS = mlp().state_dict()

# AMP004 fp32-arm-not-fp32


def hard_coded(region):
    def setup(arm):
        model, (x, y) = mlp(), batch()

        def loss_of():
            with region():
                return F.cross_entropy(model(x).float(), y)

        return stepping(arm, sgd(model), loss_of)

    return setup


@faulty("AMP004")
def a_hard_coded_region(arm):
    return hard_coded(lambda: torch.autocast("cpu", dtype=BF16))(arm)


@faulty("AMP004", ignore=["AMP101"])
def a_region_whose_flag_is_inverted(arm):
    return hard_coded(lambda: torch.autocast("cpu", dtype=BF16, enabled=not arm.enabled))(arm)


@faulty("AMP004")
def a_cast_by_hand(arm):
    model, (x, y) = mlp(), batch()

    def loss_of():
        h = F.linear(x.to(BF16), model[0].weight.to(BF16)).float()
        return F.cross_entropy(model[2](h.relu()).float(), y)

    return train(arm, sgd(model), loss_of)


@healthy("AMP004")
def a_float32_baseline(arm):
    return classifier(arm, mlp())


@healthy("AMP004", may_warn=("AMP004",))
def frozen_features_in_bfloat16(arm):
    features, head, (x, y) = nn.Linear(8, 8).to(BF16).requires_grad_(False), mlp(), batch()
    return train(
        arm, sgd(head), lambda: F.cross_entropy(head(features(x.to(BF16)).float()).float(), y)
    )


@healthy("AMP004")
def a_teacher_under_the_arms_own_autocast(arm):
    teacher, model, (x, _) = mlp().requires_grad_(False), mlp(), batch()

    def loss_of():
        with torch.no_grad(), arm.autocast():
            target = teacher(x).float()
        return F.mse_loss(model(x).float(), target)

    return train(arm, sgd(model), loss_of)


# AMP005 baseline-flags


def flagged(arm, set_flag):
    set_flag(arm.enabled)
    return classifier(arm, mlp())


@faulty("AMP005")
def a_matmul_precision_of_the_amp_arms_own(arm):
    return flagged(
        arm, lambda on: torch.set_float32_matmul_precision("medium" if on else "highest")
    )


@faulty("AMP005")
def cudnn_benchmark_in_the_amp_arm_only(arm):
    def set_flag(on):
        torch.backends.cudnn.benchmark = on

    return flagged(arm, set_flag)


@faulty("AMP005")
def fewer_threads_for_the_amp_arm(arm):
    return flagged(arm, lambda on: torch.set_num_threads(1 if on else 2))


@healthy("AMP005")
def one_precision_for_both(arm):
    return flagged(arm, lambda _: torch.set_float32_matmul_precision("high"))


@healthy("AMP005")
def deterministic_algorithms_for_both(arm):
    return flagged(arm, lambda _: torch.use_deterministic_algorithms(True))


@healthy("AMP005")
def flags_that_are_left_alone(arm):
    return classifier(arm, mlp())


# AMP006 noisy-machine: on a simulated clock.


class Noisy(SimulatedDevice):
    """A clock on which each step takes its time, and what a `noise` of its number adds."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise
        self.steps_taken = 0

    def timed(self, arm, fp32_s=0.01, amp_s=0.005):
        inner = classifier(arm, mlp())

        def step():
            loss = inner()
            self.steps_taken += 1
            self.time_s += (amp_s if arm.enabled else fp32_s) * self.noise(
                self.steps_taken, arm.enabled
            )
            return loss

        return step


def on(device):
    return {"device": device, "static": False, "max_time": 5, "min_speedup": 2.0}


def modes(length):
    """The amp arm changes its speed for `length` steps at a time."""
    return lambda step, amp: 1.5 if amp and step // length % 2 else 1.0


def spread(width):
    draw = random.Random(5)
    return lambda *_: draw.lognormvariate(0, width)


SLOW_MODES, QUICK_MODES = Noisy(modes(80)), Noisy(modes(60))
WIDE = Noisy(spread(0.8))


@faulty("AMP006", **on(SLOW_MODES))
def an_arm_that_is_throttled_for_seconds(arm):
    return SLOW_MODES.timed(arm)


@faulty("AMP006", **on(QUICK_MODES))
def an_arm_that_is_throttled_more_often(arm):
    return QUICK_MODES.timed(arm)


@faulty("AMP006", **on(WIDE))
def a_machine_that_is_busy_with_something_else(arm):
    return WIDE.timed(arm)


CALM, DRIFTING, HEAVY = (
    Noisy(spread(0.01)),
    Noisy(lambda step, _: 1 + step / 500),
    Noisy(spread(0.1)),
)


@healthy("AMP006", **{**on(CALM), "min_speedup": 1.5})
def a_quiet_machine(arm):
    return CALM.timed(arm)


@healthy("AMP006", **{**on(DRIFTING), "min_speedup": 1.5})
def a_clock_that_drifts_for_both(arm):
    return DRIFTING.timed(arm)


@healthy("AMP006", **{**on(HEAVY), "min_speedup": 1.5})
def noise_that_the_pairs_average_out(arm):
    return HEAVY.timed(arm)
