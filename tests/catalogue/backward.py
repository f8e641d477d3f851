"""AMP207, AMP301, AMP302: numbers that are lost in a loss function or on the way back from it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.catalogue.registry import faulty, healthy
from tests.catalogue.steps import batch, mlp, scaled, sgd, stepping
from tests.helpers.lab import train

HALF = {"dtype": "float16"}
STUCK = {"dtype": "float16", "steps": 20}

# AMP207 scale-stuck: the loss is finite, and its gradients are not


def on_probabilities(arm, loss_of):
    model, x = nn.Linear(16, 1), torch.randn(64, 16)
    nn.init.normal_(model.weight, std=3.0)
    y = (x[:, :1] > 0).float()
    return train(arm, sgd(model), lambda: loss_of(model(x), y))


@faulty("AMP207", **STUCK)
def cross_entropy_of_probabilities(arm):
    def loss_of(out, y):
        probability = out.sigmoid()
        return F.binary_cross_entropy(probability, y.to(probability.dtype))

    return on_probabilities(arm, loss_of)


@healthy("AMP207", **STUCK)
def cross_entropy_of_logits(arm):
    return on_probabilities(arm, F.binary_cross_entropy_with_logits)


def length(h, epsilon):
    return (h.square().sum(-1) * 1e-6 + epsilon).sqrt()


@faulty("AMP207", **STUCK)
def a_root_whose_epsilon_rounds_to_zero(arm):
    model, x = nn.Linear(8, 8, bias=False), torch.randn(16, 8)
    x[0] = 0
    return train(arm, sgd(model), lambda: length(model(x), 1e-10).float().mean())


@healthy("AMP207", **STUCK)
def a_root_whose_epsilon_is_held(arm):
    model, x = nn.Linear(8, 8, bias=False), torch.randn(16, 8)
    x[0] = 0
    return train(arm, sgd(model), lambda: length(model(x), 1e-3).float().mean())


class Boosted(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor / ctx.factor, None


@faulty("AMP207", **STUCK)
def a_custom_backward_beyond_float16(arm):
    model, x = nn.Linear(8, 8), torch.randn(16, 8)
    return train(arm, sgd(model), lambda: Boosted.apply(model(x), 1e12).float().mean())


@healthy("AMP207", **STUCK)
def a_custom_backward_within_float16(arm):
    model, x = nn.Linear(8, 8), torch.randn(16, 8)
    return train(arm, sgd(model), lambda: Boosted.apply(model(x), 8.0).float().mean())


def by_hand(arm, zeroed_at_the_start):
    """A loop that zeroes gradients at its start, or only after steps that were taken."""
    model, scaler, x = nn.Linear(8, 4), arm.scaler, torch.randn(16, 8)
    optimizer = sgd(model, lr=1e-3)

    def step():
        if zeroed_at_the_start:
            optimizer.zero_grad()
        with arm.autocast():
            loss = model(x).sum()
        scaler.scale(loss).backward()
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() >= before:
            optimizer.zero_grad()
        return loss.detach()

    return step


@faulty("AMP207", **STUCK)
def gradients_that_keep_the_overflow_of_the_first_scale(arm):
    return by_hand(arm, zeroed_at_the_start=False)


@healthy("AMP207", **STUCK, max_loss_diff=None)
def gradients_that_forget_the_overflow_of_the_first_scale(arm):
    return by_hand(arm, zeroed_at_the_start=True)


# AMP301 nonfinite-loss: outside of any module


def dice(probability, target):
    overlap = (probability * target).sum()
    return 1 - (2 * overlap + 1) / (probability.sum() + target.sum() + 1)


def segmented(arm, loss_of):
    model, x = nn.Conv2d(3, 1, 3, padding=1), torch.randn(1, 3, 384, 384)
    y = (x.mean(1, keepdim=True) > -0.3).float()

    def loss():
        return loss_of(model(x).sigmoid(), y)

    return train(arm, sgd(model), loss)


@faulty("AMP301", **HALF)
def a_dice_loss_over_many_pixels(arm):
    return segmented(arm, lambda p, y: dice(p, y.to(p.dtype)))


@healthy("AMP301", **HALF)
def a_dice_loss_in_float32(arm):
    return segmented(arm, lambda p, y: dice(p.float(), y))


@faulty("AMP301", **HALF)
def a_logarithm_whose_epsilon_rounds_to_zero(arm):
    return on_probabilities(
        arm, lambda out, y: -(y.to(arm.dtype) * (out.sigmoid() + 1e-8).log()).mean()
    )


@healthy("AMP301", **HALF)
def a_logarithm_of_a_sigmoid(arm):
    return on_probabilities(arm, lambda out, y: -(y * F.logsigmoid(out.float())).mean())


def with_an_offset(arm, dtype):
    """A share of a total, from which a part is taken that float32 tells apart from all of it."""
    model, (x, y) = mlp(), batch()

    def loss_of():
        rest = 1 + model(x).to(dtype).sigmoid() * 1e-3 - 1
        return F.cross_entropy(rest.log().float(), y)

    return train(arm, sgd(model), loss_of)


@faulty("AMP301")
def a_logarithm_of_a_difference_in_bfloat16(arm):
    return with_an_offset(arm, arm.dtype)


@healthy("AMP301")
def a_logarithm_of_a_difference_in_float32(arm):
    return with_an_offset(arm, torch.float32)


# AMP302 gradient-underflow: where no range is to blame


def policy(arm, of):
    model, x, reward = nn.Linear(16, 512), torch.randn(32, 16), torch.randn(512)
    nn.init.normal_(model.weight, std=0.02)
    nn.init.zeros_(model.bias)

    def loss_of():
        with arm.autocast():
            actions = of(model(x))
            action = actions.probs.float().argmax(-1)
            return -(actions.log_prob(action) * reward[action]).mean()

    return stepping(arm, sgd(model, lr=1e-4), loss_of)


@faulty("AMP302", max_loss_diff=None)
def a_policy_of_probabilities_in_bfloat16(arm):
    return policy(arm, lambda out: torch.distributions.Categorical(probs=out.softmax(-1)))


@healthy("AMP302", max_loss_diff=None)
def a_policy_of_logits(arm):
    return policy(arm, lambda out: torch.distributions.Categorical(logits=out.float()))


def clamped(arm, dtype):
    model, x, y = nn.Linear(16, 2000), torch.randn(32, 16), torch.randint(2000, (32,))
    nn.init.normal_(model.weight, std=0.02)

    def loss_of():
        probability = model(x).softmax(-1).to(dtype)
        least = torch.finfo(dtype).eps
        return F.nll_loss(probability.clamp(least, 1 - least).log().float(), y)

    return scaled(arm, model, sgd(model), loss_of=loss_of)


@faulty("AMP302", max_loss_diff=None, ignore=["AMP2"], **HALF)
def a_probability_clamped_at_an_epsilon_in_float16(arm):
    return clamped(arm, arm.dtype)


@healthy("AMP302", steps=16, **HALF)
def a_probability_clamped_at_an_epsilon_of_float32(arm):
    return clamped(arm, torch.float32)


def far_away(arm, dtype):
    """A distance from far away, of which a small part is looked at."""
    model, (x, y) = nn.Linear(8, 4), batch()

    def loss_of():
        with arm.autocast():
            far = model(x).to(dtype) + 1000
        return F.cross_entropy((far - 1000).clamp(min=1e-3).float(), y)

    return stepping(arm, sgd(model), loss_of)


@faulty("AMP302", max_loss_diff=None)
def a_difference_that_rounds_to_zero_in_bfloat16(arm):
    return far_away(arm, arm.dtype)


@healthy("AMP302")
def shifts_that_a_normalisation_takes_away(arm):
    """Of two examples each gets the other's gradient with its sign turned, and the sum is zero."""
    model = nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.BatchNorm1d(16),
        nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip
    x, y = batch(2)
    return train(arm, sgd(model), lambda: F.cross_entropy(model(x).float(), y))


@healthy("AMP302")
def a_difference_in_float32(arm):
    return far_away(arm, torch.float32)
