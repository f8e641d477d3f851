"""AMP3xx: numbers that reduced precision does not hold."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from tests.catalogue.registry import faulty, healthy
from tests.catalogue.steps import batch, classifier, mlp, scaled, sgd, stepping
from tests.helpers.lab import train

HALF = {"dtype": "float16"}

# AMP301 nonfinite-loss


class Squares(nn.Module):
    def forward(self, x):
        return x * x


def squared(arm, scale, module=None):
    model = nn.Sequential(nn.Linear(8, 8), module or Squares(), nn.Linear(8, 1))
    nn.init.constant_(model[0].weight, scale)
    nn.init.constant_(model[2].weight, 1e-6)
    x = torch.ones(16, 8)
    return train(arm, sgd(model, lr=1e-12), lambda: model(x).float().mean())


@faulty("AMP301", **HALF)
def a_square_beyond_float16(arm):
    return squared(arm, 60.0)


@faulty("AMP301", **HALF)
def an_exponential_beyond_float16(arm):
    class Exp(nn.Module):
        def forward(self, x):
            return torch.ldexp(torch.ones_like(x), x.clamp(max=20).to(torch.int32))

    return squared(arm, 2.6, Exp())


@faulty("AMP301", **HALF)
def a_product_of_many_terms(arm):
    model = nn.Linear(1024, 4)
    nn.init.constant_(model.weight, 1.0)
    x = torch.full((4, 1024), 100.0)
    return train(arm, sgd(model, lr=0.0), lambda: model(x).float().mean() * 1e-6)


@faulty("AMP301", **HALF)
def a_masked_mean_over_nothing(arm):
    """The padding's epsilon is there in float32, and rounds to zero in float16."""
    model, x = nn.Linear(8, 8), torch.randn(4, 8)

    def loss_of():
        h = model(x)
        empty = torch.zeros(4, 1).to(h.dtype)
        epsilon = torch.tensor(1e-9).to(h.dtype)
        return (h + (h * empty).sum() / (empty.sum() + epsilon)).float().square().mean()

    return train(arm, sgd(model, lr=0.0), loss_of)


@healthy("AMP301", **HALF)
def a_mask_of_infinities(arm):
    model, x = nn.Linear(8, 8), torch.randn(6, 8)
    future = torch.ones(6, 6).triu(1).bool()

    def loss_of():
        h = model(x)
        return ((h @ h.t()).masked_fill(future, float("-inf")).softmax(-1) @ h).float().mean()

    return train(arm, sgd(model), loss_of)


@healthy("AMP301", **HALF, steps=16)
def a_gradient_penalty_that_overflows_while_the_scale_is_found(arm):
    """As torch's notes have it: the penalty is made of scaled gradients, and so is the loss."""
    model, x = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1)), torch.randn(32, 16)
    optimizer, scaler, y = sgd(model, lr=1e-3), arm.scaler, x.mean(1, keepdim=True)

    def step():
        optimizer.zero_grad()
        with arm.autocast():
            loss = F.mse_loss(model(x).float(), y, reduction="sum")
        times_scale = torch.autograd.grad(scaler.scale(loss), model.parameters(), create_graph=True)
        gradients = [each / scaler.get_scale() for each in times_scale]
        with arm.autocast():
            penalty = torch.stack([each.square().sum() for each in gradients]).sum().sqrt()
            loss = loss + 0.01 * penalty
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    return step


@healthy("AMP301", **HALF)
def a_square_that_stays_in_float32(arm):
    model, x = nn.Linear(8, 8), torch.ones(16, 8)
    nn.init.constant_(model.weight, 10.0)

    def loss_of():
        with torch.autocast("cpu", enabled=False):
            return model(x).square().mean() * 1e-6

    rest, (more, y) = mlp(64), batch()
    return train(arm, sgd(model, rest), lambda: loss_of() + F.cross_entropy(rest(more).float(), y))


@healthy("AMP301")
def large_numbers_in_bfloat16(arm):
    return squared(arm, 60.0)


# AMP302 gradient-underflow


def faint(arm, factor, with_scaler=True):
    """A loss so small that its gradients are, too."""
    model, (x, y) = mlp(), batch()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", enabled=arm.enabled and with_scaler)

    def step():
        optimizer.zero_grad()
        with arm.autocast():
            loss = F.cross_entropy(model(x).float(), y) * factor
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach() / factor

    return step


@faulty("AMP302", ignore=["AMP2"], max_loss_diff=None, **HALF)
def a_faint_loss_without_a_scaler(arm):
    return faint(arm, 1e-6, with_scaler=False)


@faulty("AMP302", ignore=["AMP2"], max_loss_diff=None, **HALF)
def a_mean_over_very_many(arm):
    model, (x, y) = mlp(), batch()
    return stepping(
        arm, sgd(model), lambda: _under(arm, lambda: F.cross_entropy(model(x).float(), y)) / 2**20
    )


def _under(arm, function):
    with arm.autocast():
        return function()


@faulty("AMP302", ignore=["AMP2"], max_loss_diff=None, **HALF)
def a_scale_that_is_too_small(arm):
    model = mlp()
    own = torch.amp.GradScaler("cpu", enabled=arm.enabled, init_scale=2.0**-16)
    return scaled(arm, model, sgd(model), scaler=own)


@healthy("AMP302", **HALF)
def a_scaled_loss(arm):
    return classifier(arm, mlp())


@healthy("AMP302", **HALF)
def a_faint_loss_that_is_scaled(arm):
    return faint(arm, 1e-3)


@healthy("AMP302")
def a_faint_loss_in_bfloat16(arm):
    return faint(arm, 1e-6, with_scaler=False)


# AMP303 overflow-risk


@faulty("AMP303", **HALF)
def activations_beyond_float16_in_a_part_kept_in_float32(arm):
    first, second, x = nn.Linear(8, 8), nn.Linear(8, 1), torch.ones(16, 8)
    nn.init.constant_(first.weight, 5e4)
    nn.init.constant_(second.weight, 1e-6)

    def loss_of():
        with torch.autocast("cpu", enabled=False):
            return second(first(x)).square().mean()

    return train(arm, sgd(first, second, lr=0.0), lambda: loss_of() + 0 * _reduced(arm, x))


def _reduced(arm, x):
    return (x.to(arm.dtype) @ x.to(arm.dtype).t()).float().mean()


@faulty("AMP303", **HALF)
def a_residual_stream_that_grows(arm):
    class Grow(nn.Module):
        def forward(self, x):
            return x.float() + 3e4 * x.float()

    model = nn.Sequential(nn.Linear(8, 8), Grow(), Grow(), nn.LayerNorm(8), nn.Linear(8, 4))
    return classifier(arm, model)


@faulty("AMP303", **HALF)
def a_score_that_is_scaled_too_late(arm):
    class Score(nn.Module):
        def forward(self, x):
            with torch.autocast("cpu", enabled=False):
                return x.float() @ x.float().t() * 1e5

    model, x, y = nn.Sequential(nn.Linear(8, 16), Score()), torch.randn(8, 8), torch.arange(8) % 8
    return train(arm, sgd(model, lr=0.0), lambda: F.cross_entropy(model(x).float() / 1e5, y))


@healthy("AMP303", **HALF)
def activations_of_ordinary_size(arm):
    return classifier(arm, nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4)))


@healthy("AMP303")
def large_activations_in_bfloat16(arm):
    model = nn.Sequential(nn.Linear(8, 8), Squares(), nn.LayerNorm(8), nn.Linear(8, 4))
    nn.init.normal_(model[0].weight, std=60.0)
    return classifier(arm, model, sgd(model, lr=1e-4))


@healthy("AMP303", **HALF)
def infinities_of_a_mask(arm):
    return a_mask_of_infinities(arm)


# AMP304 gradient-mismatch


class Rounded(torch.autograd.Function):
    """A kernel that is wrong in reduced precision only, as releases have shipped them."""

    @staticmethod
    def forward(ctx, x, weight, how):
        ctx.save_for_backward(x, weight)
        ctx.how = how
        return x @ weight.to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        mine = x.t() @ grad
        return grad @ weight.t().to(grad.dtype), ctx.how(mine).float(), None


def with_kernel(arm, how):
    weight, (x, y) = nn.Parameter(torch.randn(8, 16) / 3), batch()
    head = nn.Linear(16, 4)
    optimizer = torch.optim.SGD([weight, *head.parameters()], lr=0.01)
    bent = how if arm.enabled else (lambda grad: grad)

    def loss_of():
        return F.cross_entropy(head(Rounded.apply(x.to(arm.dtype), weight, bent)).float(), y)

    return train(arm, optimizer, loss_of)


@faulty("AMP304", max_loss_diff=None)
def a_gradient_of_the_wrong_sign(arm):
    return with_kernel(arm, lambda grad: -grad)


@faulty("AMP304", max_loss_diff=None)
def a_gradient_that_is_doubled(arm):
    return with_kernel(arm, lambda grad: 2 * grad)


@faulty("AMP304", max_loss_diff=None)
def a_gradient_that_lost_half_of_its_rows(arm):
    def how(grad):
        grad = grad.clone()
        grad[::2] = 0
        return grad

    return with_kernel(arm, how)


@faulty("AMP304", max_loss_diff=None)
def a_variance_by_subtraction(arm):
    model, (x, y) = mlp(), batch()

    def loss_of():
        h = model[0](x) + 100.0
        spread = h.square().mean(-1, keepdim=True) - h.mean(-1, keepdim=True).square()
        return F.cross_entropy(model[2]((h - 100) / (spread.abs() + 0.1).sqrt()).float(), y)

    return train(arm, sgd(model, lr=1e-3), loss_of)


@healthy("AMP304", **HALF)
def a_first_step_that_is_skipped_and_fresh_data(arm):
    """The first gradients that amp steps on are of the second batch."""
    model, calls = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4)), itertools.count()

    def loss_of():
        large = 8.0 if next(calls) == 0 else 1.0
        return F.mse_loss(model(torch.randn(64, 8)).float(), large * torch.randn(64, 4),
                          reduction="sum")  # fmt: skip

    return train(arm, sgd(model, lr=1e-4), loss_of)


@healthy("AMP304")
def a_kernel_that_is_right(arm):
    return with_kernel(arm, lambda grad: grad)


@healthy("AMP304")
def a_bias_before_a_normalisation(arm):
    """Its true gradient is zero, and what is left of it is rounding."""
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    return classifier(arm, model)


@healthy("AMP304", **HALF)
def gradients_that_are_clipped_after_unscaling(arm):
    model = mlp()
    optimizer = sgd(model)

    def edit(scaler):
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    return scaled(arm, model, optimizer, edit)


@healthy("AMP304")
def a_recurrent_network(arm):
    cell, head = nn.RNNCell(8, 16), nn.Linear(16, 4)
    x, y = torch.randn(5, 16, 8), torch.randint(4, (16,))

    def loss_of():
        h = torch.zeros(16, 16)
        for each in x:
            h = cell(each, h.to(arm.dtype)).to(arm.dtype)
        return F.cross_entropy(head(h).float(), y)

    return train(arm, sgd(cell, head), loss_of)


def probabilities(arm, loss_of):
    """A confident classifier that is often wrong, whose loss is made of its probabilities."""
    model, x = nn.Linear(8, 1), torch.randn(64, 8)
    with torch.no_grad():
        model.weight.mul_(12)
    y = torch.randint(2, (64, 1)).float()
    return train(arm, sgd(model, lr=1e-3), lambda: loss_of(model(x), y))


@faulty("AMP304", gates=False)
def cross_entropy_of_a_rounded_probability(arm):
    def loss_of(out, y):
        p = out.sigmoid()
        return -(y * (p + 1e-6).log() + (1 - y) * (1 - p + 1e-6).log()).float().mean()

    return probabilities(arm, loss_of)


@faulty("AMP304", gates=False)
def a_focal_loss_of_a_rounded_probability(arm):
    def loss_of(out, y):
        p = out.sigmoid()
        right = y * p + (1 - y) * (1 - p)
        return -((1 - right) ** 2 * (right + 1e-6).log()).float().mean()

    return probabilities(arm, loss_of)


@healthy("AMP304")
def cross_entropy_of_logits(arm):
    return probabilities(arm, lambda out, y: F.binary_cross_entropy_with_logits(out.float(), y))


@healthy("AMP304")
def batch_norm_between_convolutions(arm):
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 16, 3, padding=1), nn.BatchNorm1d(16), nn.ReLU(),
        nn.Conv1d(16, 16, 3, padding=1), nn.BatchNorm1d(16), nn.ReLU(), nn.Flatten(),
        nn.Linear(128, 4),
    )  # fmt: skip
    return classifier(arm, model)


# AMP305 below-noise-floor


def iterated(arm, growth):
    """The logistic map: from a growth of 3.57 on, every rounding grows with each turn."""
    weight, (x, y), model = nn.Parameter(torch.full((1,), 0.3)), batch(), mlp()
    optimizer = torch.optim.SGD([weight, *model.parameters()], lr=1e-3)

    def loss_of():
        state = weight.to(arm.dtype).float().sigmoid()
        for _ in range(40):
            state = growth * state * (1 - state)
        return F.cross_entropy(model(x).float(), y) + state.clamp(min=0.01).log().detach().sum()

    def step():
        loss = inner()
        with torch.no_grad():
            weight.add_(1e-3)
        return loss

    inner = train(arm, optimizer, loss_of)
    return step


@faulty("AMP305", steps=20)
def a_chaotic_iteration(arm):
    return iterated(arm, 3.9)


@faulty("AMP305", steps=20)
def a_chaotic_iteration_of_another_growth(arm):
    return iterated(arm, 3.99)


@faulty("AMP305", steps=20, **HALF)
def a_chaotic_iteration_in_float16(arm):
    return iterated(arm, 3.95)


@healthy("AMP305", steps=20)
def an_iteration_that_forgets_its_start(arm):
    return iterated(arm, 2.5)


@healthy("AMP305", max_loss_diff=0.05)
def a_threshold_above_the_noise(arm):
    return classifier(arm, mlp())


@healthy("AMP305", steps=20)
def dropout(arm):
    model = nn.Sequential(nn.Linear(8, 32), nn.Dropout(0.3), nn.ReLU(), nn.Linear(32, 4))
    return classifier(arm, model)
