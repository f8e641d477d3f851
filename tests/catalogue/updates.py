"""AMP307: updates of averages and sums that reduced precision does not hold."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.catalogue.registry import faulty, healthy
from tests.catalogue.steps import batch, mlp
from tests.helpers.lab import train

DECAY = 0.999


def followed(arm, follow, dtype=None):
    """The plain step, after which `follow` is called with each average and its weight."""
    model, (x, y) = mlp(), batch()
    average = copy.deepcopy(model).requires_grad_(False).to(dtype or arm.dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    inner = train(arm, optimizer, lambda: F.cross_entropy(model(x).float(), y))

    def step():
        loss = inner()
        with torch.no_grad():
            for mine, weight in zip(average.parameters(), model.parameters(), strict=True):
                follow(mine, weight)
        return loss

    return step


# AMP307 lost-updates


@faulty("AMP307")
def an_average_in_bfloat16(arm):
    def follow(average, weight):
        average.mul_(DECAY).add_(weight.to(average.dtype), alpha=1 - DECAY)

    return followed(arm, follow)


@faulty("AMP307", dtype="float16")
def an_average_that_is_copied_in_float16(arm):
    def follow(average, weight):
        average.copy_(0.9999 * average + (1 - 0.9999) * weight.to(average.dtype))

    return followed(arm, follow)


@faulty("AMP307")
def an_average_that_is_replaced(arm):
    def follow(average, weight):
        average.data = DECAY * average.data + (1 - DECAY) * weight.data.to(average.dtype)

    return followed(arm, follow)


@faulty("AMP307")
def an_averaged_model_of_torch_s(arm):
    model, (x, y) = mlp(), batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    half = copy.deepcopy(model).to(arm.dtype)
    average = AveragedModel(half, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    average.update_parameters(half)
    inner = train(arm, optimizer, lambda: F.cross_entropy(model(x).float(), y))

    def step():
        loss = inner()
        half.load_state_dict(model.state_dict())
        average.update_parameters(half)
        return loss

    return step


@faulty("AMP307")
def a_hook_of_the_optimizer_s_that_averages(arm):
    model, (x, y) = mlp(), batch()
    averages = [p.detach().to(arm.dtype) for p in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def follow(*_):
        weights = [p.detach().to(arm.dtype) for p in model.parameters()]
        torch._foreach_mul_(averages, DECAY)
        torch._foreach_add_(averages, weights, alpha=1 - DECAY)

    optimizer.register_step_post_hook(follow)
    return train(arm, optimizer, lambda: F.cross_entropy(model(x).float(), y))


def counting(arm, count):
    """The plain step, which also counts classes in sums that have come far."""
    model, (x, y) = mlp(), batch()
    seen = torch.full((4,), 4096.0, dtype=arm.dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss_of():
        count(seen, y)
        return F.cross_entropy(model(x).float(), y)

    return train(arm, optimizer, loss_of)


@faulty("AMP307")
def a_count_that_has_come_too_far(arm):
    return counting(arm, lambda seen, y: seen.index_add_(0, y, torch.ones(16, dtype=seen.dtype)))


@healthy("AMP307")
def an_average_in_float32(arm):
    return followed(arm, lambda average, weight: average.lerp_(weight, 1 - DECAY), torch.float32)


@healthy("AMP307")
def a_short_average_in_bfloat16(arm):
    return followed(arm, lambda average, weight: average.lerp_(weight.to(average.dtype), 0.5))


@healthy("AMP307")
def an_average_that_is_rounded_stochastically(arm):
    def follow(average, weight):
        exact = torch.lerp(average.float(), weight, 1 - DECAY)
        bits = torch.randint_like(exact, 1 << 16, dtype=torch.int32) + exact.view(torch.int32)
        average.copy_(bits.bitwise_and_(-(1 << 16)).view(torch.float32))

    return followed(arm, follow, torch.bfloat16)


@healthy("AMP307", dtype="float16")
def an_average_with_noise_of_a_rounding_step(arm):
    def follow(average, weight):
        exact = torch.lerp(average.float(), weight, 1 - DECAY)
        average.copy_(exact + (torch.rand(exact.shape) - 0.5) * exact.abs() * 2**-10)

    return followed(arm, follow)


@healthy("AMP307")
def an_average_by_kahan_s_sum(arm):
    rest: dict[int, torch.Tensor] = {}

    def follow(average, weight):
        lost = rest.setdefault(id(average), torch.zeros_like(average))
        change = (weight.to(average.dtype) - average) * (1 - DECAY) + lost
        before = average.clone()
        average.add_(change)
        lost.copy_(change - (average - before))

    return followed(arm, follow)


@healthy("AMP307")
def a_reduced_copy_of_an_average_in_float32(arm):
    exact: dict[int, torch.Tensor] = {}

    def follow(average, weight):
        mine = exact.setdefault(id(average), weight.detach().clone())
        average.copy_(mine.lerp_(weight, 1 - DECAY))

    return followed(arm, follow)


class _Averaging(torch.optim.SGD):
    """Keeps an average in its state."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                average = state.setdefault("average", weight.detach().bfloat16())
                average.lerp_(weight.bfloat16(), 1 - DECAY)
        return loss


@healthy("AMP307")
def an_average_that_is_the_optimizer_s_own(arm):
    model, (x, y) = mlp(), batch()
    optimizer = _Averaging(model.parameters(), lr=0.05)
    return train(arm, optimizer, lambda: F.cross_entropy(model(x).float(), y))


@healthy("AMP307")
def an_average_of_weights_that_are_frozen(arm):
    model, frozen, (x, y) = mlp(), nn.Linear(8, 8), batch()
    average = frozen.weight.detach().to(arm.dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss_of():
        average.mul_(DECAY).add_((1 - DECAY) * frozen.weight.detach().to(arm.dtype))
        return F.cross_entropy(model(frozen(x)).float(), y)

    return train(arm, optimizer, loss_of)


@healthy("AMP307")
def a_count_with_a_cap(arm):
    return counting(arm, lambda seen, _: seen.add_(1).clamp_(max=4096))
