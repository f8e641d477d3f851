"""AMP2xx: a GradScaler that is used as it must not be, and steps that look as if it were."""

from __future__ import annotations

import itertools
import warnings

import torch
import torch.nn.functional as F
from torch import nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.checkpoint import checkpoint

from tests.catalogue.registry import faulty, healthy
from tests.catalogue.steps import batch, classifier, mlp, scaled, sgd

HALF = {"dtype": "float16"}
GRADIENT = 0.05  # about as large as an element of a gradient here


def adamw(*models, lr=1e-3, **options):
    return torch.optim.AdamW([p for model in models for p in model.parameters()], lr=lr, **options)


def adversaries(arm, step_second, clip_second=False):
    """Two models, two optimizers, one scaler; the second one's step is the argument's."""
    first, second, scaler, (x, y) = mlp(), mlp(), arm.scaler, batch()
    a, b = adamw(first), adamw(second)

    def step():
        losses = {}
        for name, model, optimizer in (("first", first, a), ("second", second, b)):
            optimizer.zero_grad()
            with arm.autocast():
                losses[name] = F.cross_entropy(model(x).float(), y)
            scaler.scale(losses[name]).backward()
        if clip_second:
            clip_grad_norm_(second.parameters(), GRADIENT)
        scaler.step(a)
        step_second(scaler, b)
        scaler.update()
        return losses

    return step


def accumulating(arm, optimizer, model, edit=lambda _: None, scales=(True, True)):
    """Two microbatches per optimizer step, all in one step; `scales`: whether each is scaled."""
    scaler, halves = arm.scaler, [batch(8) for _ in scales]

    def step():
        optimizer.zero_grad()
        total = 0.0
        for is_scaled, (x, y) in zip(scales, halves, strict=True):
            with arm.autocast():
                loss = F.cross_entropy(model(x).float(), y) / len(scales)
            (scaler.scale(loss) if is_scaled else loss).backward()
            total += loss.detach()
        edit(scaler)
        scaler.step(optimizer)
        scaler.update()
        return total

    return step


def microbatches(arm, model, optimizer, scheduler=None):
    """One microbatch per step, and the optimizer's step after every third."""
    scaler, (x, y), count = arm.scaler, batch(), itertools.count(1)

    def step():
        with arm.autocast():
            loss = F.cross_entropy(model(x).float(), y)
        scaler.scale(loss / 3).backward()
        if next(count) % 3 == 0:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if scheduler:
                scheduler.step()
        return loss

    return step


def grads(model):
    return [p.grad for p in model.parameters() if p.grad is not None]


def has_finite_gradients(model):
    return all(bool(grad.isfinite().all()) for grad in grads(model))


# AMP202 scaler-with-bf16


@faulty("AMP202")
def a_scaler_of_ones_own_in_bfloat16(arm):
    model = mlp()
    return scaled(arm, model, sgd(model), scaler=GradScaler("cpu", enabled=arm.enabled))


@faulty("AMP202")
def a_scaler_that_is_on_in_both_arms(arm):
    model = mlp()
    return scaled(arm, model, adamw(model), scaler=GradScaler("cpu"))


@faulty("AMP202")
def a_scaler_in_bfloat16_used_to_the_letter(arm):
    model = mlp()

    def edit(scaler):
        scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), GRADIENT)

    optimizer = adamw(model, fused=True)
    return scaled(arm, model, optimizer, edit, GradScaler("cpu", enabled=arm.enabled))


@healthy("AMP202")
def a_scaler_that_is_disabled_in_bfloat16(arm):
    model = mlp()
    own = GradScaler("cpu", enabled=arm.dtype is torch.float16)
    return scaled(arm, model, sgd(model), scaler=own)


@healthy("AMP202")
def bfloat16_without_a_scaler(arm):
    return classifier(arm, mlp())


@healthy("AMP202", **HALF)
def a_scaler_of_ones_own_in_float16(arm):
    model = mlp()
    own = GradScaler("cpu", enabled=arm.enabled, init_scale=2.0**10)
    return scaled(arm, model, sgd(model), scaler=own)


# AMP203 modified-before-unscale


@faulty("AMP203", **HALF)
def clipped_by_norm_while_scaled(arm):
    model = mlp()
    return scaled(arm, model, sgd(model), lambda _: clip_grad_norm_(model.parameters(), GRADIENT))


@faulty("AMP203", **HALF)
def clipped_by_value_while_scaled(arm):
    model = mlp()
    return scaled(
        arm, model, adamw(model), lambda _: clip_grad_value_(model.parameters(), GRADIENT)
    )


@faulty("AMP203", **HALF)
def clipped_while_scaled_with_a_fused_optimizer(arm):
    model = mlp()
    return scaled(
        arm, model, adamw(model, fused=True), lambda _: clip_grad_norm_(model.parameters(), 1.0)
    )


@faulty("AMP203", **HALF)
def clipped_by_hand_while_scaled(arm):
    model = mlp()

    def edit(_):
        norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in grads(model)]))
        for grad in grads(model):
            grad.mul_((GRADIENT / (norm + 1e-6)).clamp(max=1.0))

    return scaled(arm, model, adamw(model, foreach=True), edit)


@faulty("AMP203", **HALF)
def clipped_through_data(arm):
    model = mlp()

    def edit(_):
        for p in model.parameters():
            p.grad.data.clamp_(-GRADIENT, GRADIENT)

    return scaled(arm, model, sgd(model), edit)


@faulty("AMP203", **HALF)
def gradients_that_are_replaced_by_clipped_ones(arm):
    model = mlp()

    def edit(_):
        for p in model.parameters():
            p.grad = p.grad.clamp(-GRADIENT, GRADIENT)

    return scaled(arm, model, sgd(model), edit)


@faulty("AMP203", **HALF)
def clipped_in_a_tensor_hook(arm):
    model = mlp()
    for p in model.parameters():
        p.register_hook(lambda grad: grad.clamp(-GRADIENT, GRADIENT))
    return scaled(arm, model, adamw(model))


@faulty("AMP203", **HALF)
def noise_on_scaled_gradients(arm):
    model = mlp()

    def edit(_):
        for grad in grads(model):
            grad.add_(torch.randn_like(grad))

    return scaled(arm, model, sgd(model), edit)


@faulty("AMP203", **HALF)
def weight_decay_on_scaled_gradients(arm):
    model = mlp()

    def edit(_):
        for p in model.parameters():
            p.grad.add_(p.detach())

    return scaled(arm, model, adamw(model), edit)


@faulty("AMP203", **HALF)
def unscaled_by_hand_and_once_more_by_the_scaler(arm):
    model = mlp()

    def edit(scaler):
        for grad in grads(model):
            grad.div_(scaler.get_scale())

    return scaled(arm, model, adamw(model), edit)


@faulty("AMP203", **HALF)
def clipped_while_scaled_after_accumulation(arm):
    model = mlp()
    optimizer = adamw(model)
    return accumulating(
        arm, optimizer, model, lambda _: clip_grad_norm_(model.parameters(), GRADIENT)
    )


@faulty("AMP203", **HALF)
def the_second_of_two_optimizers_clips_while_scaled(arm):
    return adversaries(arm, lambda scaler, b: scaler.step(b), clip_second=True)


@faulty("AMP203", **HALF)
def clipped_while_scaled_by_a_scaler_subclass(arm):
    class Clipping(GradScaler):
        def step(self, optimizer, *args, **kwargs):
            clip_grad_norm_(optimizer.param_groups[0]["params"], GRADIENT)
            return super().step(optimizer, *args, **kwargs)

    model = mlp()
    own = Clipping("cpu", enabled=arm.enabled, init_scale=2.0**12)
    return scaled(arm, model, adamw(model), scaler=own)


@faulty("AMP203", **HALF)
def steps_left_out_where_the_scaled_norm_is_large(arm):
    model = mlp()
    optimizer = adamw(model)

    def end(scaler):
        if torch.stack([grad.norm() for grad in grads(model)]).norm() < 2000:
            scaler.step(optimizer)
            scaler.update()

    return scaled(arm, model, optimizer, end=end)


@healthy("AMP203", **HALF)
def clipped_after_unscale(arm):
    model = mlp()
    optimizer = sgd(model)

    def edit(scaler):
        scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), GRADIENT)

    return scaled(arm, model, optimizer, edit)


@healthy("AMP203", **HALF)
def clipped_by_value_after_unscale_with_a_fused_optimizer(arm):
    model = mlp()
    optimizer = adamw(model, fused=True)

    def edit(scaler):
        scaler.unscale_(optimizer)
        clip_grad_value_(model.parameters(), GRADIENT)

    return scaled(arm, model, optimizer, edit)


@healthy("AMP203", **HALF)
def a_norm_that_is_only_looked_at_while_scaled(arm):
    model = mlp()
    return scaled(
        arm, model, adamw(model), lambda _: clip_grad_norm_(model.parameters(), float("inf"))
    )


@healthy("AMP203", **HALF)
def clipped_while_scaled_to_a_norm_that_is_scaled_too(arm):
    model = mlp()

    def edit(scaler):
        clip_grad_norm_(model.parameters(), GRADIENT * scaler.get_scale())

    return scaled(arm, model, sgd(model), edit)


@healthy("AMP203", **HALF)
def averaged_while_scaled(arm):
    model = mlp()

    def edit(_):
        for grad in grads(model):
            grad.div_(3)

    return scaled(arm, model, adamw(model, foreach=True), edit)


@healthy("AMP203", **HALF)
def masked_while_scaled(arm):
    model = mlp()

    def edit(_):
        for p in model.parameters():
            p.grad = torch.where(p.detach() > 0, p.grad, 0.0)

    return scaled(arm, model, adamw(model), edit)


@healthy("AMP203", **HALF)
def a_tensor_hook_that_halves(arm):
    model = mlp()
    for p in model.parameters():
        p.register_hook(lambda grad: grad / 2)
    return scaled(arm, model, sgd(model))


@healthy("AMP203", **HALF)
def accumulated_and_clipped_after_unscale(arm):
    model = mlp()
    optimizer = adamw(model)

    def edit(scaler):
        scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), GRADIENT)

    return accumulating(arm, optimizer, model, edit)


@healthy("AMP203", **HALF)
def microbatches_of_a_third(arm):
    model = mlp()
    return microbatches(arm, model, adamw(model))


@healthy("AMP203", **HALF)
def dropout_under_a_scaler(arm):
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 4))
    return scaled(arm, model, adamw(model))


@healthy("AMP203", **HALF)
def batch_norm_under_a_scaler(arm):
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    return scaled(arm, model, sgd(model))


@healthy("AMP203", **HALF)
def checkpointed_under_a_scaler(arm):
    model, (x, y) = mlp(), batch()

    def loss_of():
        hidden = checkpoint(model[:2], x, use_reentrant=False)
        return F.cross_entropy(model[2](hidden).float(), y)

    return scaled(arm, model, adamw(model), loss_of=loss_of)


@healthy("AMP203", **HALF)
def batches_of_varying_length_under_a_scaler(arm):
    model, sizes = mlp(), itertools.cycle((16, 7, 11))

    def loss_of():
        x, y = batch(next(sizes))
        return F.cross_entropy(model(x).float(), y)

    return scaled(arm, model, sgd(model), loss_of=loss_of)


@healthy("AMP203", **HALF)
def sparse_gradients_under_a_scaler(arm):
    table, head, (_, y) = nn.Embedding(20, 8, sparse=True), nn.Linear(8, 4), batch()
    places = torch.randint(20, (16,))
    optimizer = sgd(table, head)
    model = nn.ModuleList([table, head])
    return scaled(
        arm, model, optimizer, loss_of=lambda: F.cross_entropy(head(table(places)).float(), y)
    )


@healthy("AMP203", **HALF)
def loss_scaling_by_hand(arm):
    model, (x, y) = mlp(), batch()
    optimizer = sgd(model)
    scale = 2.0**10 if arm.enabled else 1.0

    def step():
        optimizer.zero_grad()
        with arm.autocast():
            loss = F.cross_entropy(model(x).float(), y)
        (loss * scale).backward()
        for grad in grads(model):
            grad.div_(scale)
        clip_grad_norm_(model.parameters(), GRADIENT)
        optimizer.step()
        return loss

    return step


# AMP204 scaler-protocol


@faulty("AMP204", **HALF)
def unscaled_twice(arm):
    model = mlp()
    optimizer = sgd(model)

    def edit(scaler):
        scaler.unscale_(optimizer)
        scaler.unscale_(optimizer)

    return scaled(arm, model, optimizer, edit)


@faulty("AMP204", **HALF)
def stepped_twice_for_one_update(arm):
    model = mlp()
    optimizer = adamw(model)
    return scaled(arm, model, optimizer, lambda scaler: scaler.step(optimizer))


@faulty("AMP204", **HALF)
def unscaled_after_the_step(arm):
    model = mlp()
    optimizer = adamw(model, fused=True)

    def edit(scaler):
        scaler.step(optimizer)
        scaler.unscale_(optimizer)

    return scaled(arm, model, optimizer, edit)


@faulty("AMP204", **HALF)
def never_updated(arm):
    model = mlp()
    optimizer = sgd(model)
    return scaled(arm, model, optimizer, end=lambda scaler: scaler.step(optimizer))


@faulty("AMP204", **HALF)
def updated_only_after_a_step_that_was_taken(arm):
    model = mlp()
    optimizer = sgd(model)

    def end(scaler):
        scaler.step(optimizer)
        if has_finite_gradients(model):
            scaler.update()

    return scaled(arm, model, optimizer, end=end)


@faulty("AMP204", **HALF)
def updated_without_the_scalers_step(arm):
    model = mlp()
    optimizer = sgd(model, lr=1e-9)

    def end(scaler):
        optimizer.step()
        scaler.update()

    return scaled(arm, model, optimizer, end=end)


@faulty("AMP204", **HALF)
def updated_before_the_scalers_step(arm):
    model = mlp()
    optimizer = sgd(model)

    def end(scaler):
        scaler.update()
        scaler.step(optimizer)

    return scaled(arm, model, optimizer, end=end)


@faulty("AMP204", **HALF)
def a_loss_that_was_never_scaled(arm):
    model, scaler, (x, y) = mlp(), arm.scaler, batch()
    optimizer = sgd(model)

    def step():
        optimizer.zero_grad()
        with arm.autocast():
            loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    return step


@faulty("AMP204", **HALF)
def gradients_zeroed_before_the_step(arm):
    model = mlp()
    optimizer = sgd(model)
    return scaled(arm, model, optimizer, lambda _: optimizer.zero_grad())


@healthy("AMP204", **HALF)
def unscaled_once_for_each_of_two_optimizers(arm):
    def step_second(scaler, b):
        scaler.unscale_(b)
        scaler.step(b)

    return adversaries(arm, step_second)


@healthy("AMP204")
def a_disabled_scaler_may_be_called_as_one_likes(arm):
    model = mlp()
    optimizer = sgd(model)

    def edit(scaler):
        scaler.unscale_(optimizer)
        scaler.unscale_(optimizer)

    return scaled(arm, model, optimizer, edit)


@healthy("AMP204", **HALF)
def one_scaler_for_each_of_two_optimizers(arm):
    first, second, (x, y) = mlp(), mlp(), batch()
    parts = [
        (model, adamw(model), GradScaler("cpu", enabled=arm.enabled, init_scale=2.0**12))
        for model in (first, second)
    ]

    def step():
        losses = []
        for model, optimizer, scaler in parts:
            optimizer.zero_grad()
            with arm.autocast():
                losses.append(F.cross_entropy(model(x).float(), y))
            scaler.scale(losses[-1]).backward()
            scaler.step(optimizer)
            scaler.update()
        return losses[0].detach() + losses[1].detach()

    return step


# AMP205 scheduler-on-skipped-step


def scheduled(arm, make, scaler=None, optimizer=None, move=lambda scheduler, *_: scheduler.step()):
    """A step with a scheduler; `move(scheduler, went_down, loss)` comes after the update."""
    model, scaler = mlp(), scaler or arm.scaler
    optimizer = adamw(model) if optimizer is None else optimizer(model)
    scheduler = make(optimizer)
    inner = scaled(arm, model, optimizer, scaler=scaler)

    def step():
        before = scaler.get_scale()
        loss = inner()
        move(scheduler, scaler.get_scale() < before, loss)
        return loss

    return step


def overflowing_at_first(arm):
    """Its scale is so high that the first step is skipped, or the first few."""
    return GradScaler("cpu", enabled=arm.enabled, init_scale=2.0**25)


@faulty("AMP205", **HALF)
def a_scheduler_that_moves_whatever_happens(arm):
    return scheduled(arm, lambda optimizer: StepLR(optimizer, 2, gamma=0.9))


@faulty("AMP205", **HALF)
def a_scheduler_that_moves_before_the_scaler_decides(arm):
    model = mlp()
    optimizer = adamw(model)
    scheduler = StepLR(optimizer, 2, gamma=0.9)

    def edit(_):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of the order, once
            scheduler.step()

    return scaled(arm, model, optimizer, edit)


@faulty("AMP205", **HALF)
def one_cycle_that_moves_whatever_happens(arm):
    return scheduled(arm, lambda optimizer: OneCycleLR(optimizer, 1e-3, total_steps=10_000))


@faulty("AMP205", **HALF, steps=12)
def a_warm_up_that_moves_while_the_scale_is_found(arm):
    def move(scheduler, *_):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of it too, in the first step only
            scheduler.step()

    return scheduled(
        arm,
        lambda optimizer: LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 100)),
        scaler=overflowing_at_first(arm),
        move=move,
    )


@faulty("AMP205", **HALF)
def a_scheduler_of_a_fused_optimizer(arm):
    return scheduled(
        arm,
        lambda optimizer: StepLR(optimizer, 2, gamma=0.9),
        optimizer=lambda model: adamw(model, fused=True),
    )


@faulty("AMP205", **HALF)
def a_scheduler_that_moves_after_microbatches(arm):
    model = mlp()
    optimizer = adamw(model)
    return microbatches(arm, model, optimizer, StepLR(optimizer, 2, gamma=0.9))


@healthy("AMP205", **HALF)
def a_scheduler_guarded_by_the_scale(arm):
    return scheduled(
        arm,
        lambda optimizer: StepLR(optimizer, 2, gamma=0.9),
        move=lambda scheduler, went_down, _: None if went_down else scheduler.step(),
    )


@healthy("AMP205", **HALF, steps=12)
def a_guarded_scheduler_while_the_scale_is_found(arm):
    return scheduled(
        arm,
        lambda optimizer: StepLR(optimizer, 2, gamma=0.9),
        scaler=overflowing_at_first(arm),
        move=lambda scheduler, went_down, _: None if went_down else scheduler.step(),
    )


@healthy("AMP205", **HALF)
def a_rate_that_is_set_by_the_iteration(arm):
    count = itertools.count(1)

    def move(optimizer, *_):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 / next(count)

    return scheduled(arm, lambda optimizer: optimizer, move=move)


@healthy("AMP205", **HALF)
def a_scheduler_that_moves_once_an_epoch(arm):
    count = itertools.count(1)

    def move(scheduler, *_):
        if next(count) % 3 == 0:
            scheduler.step()

    return scheduled(arm, lambda optimizer: StepLR(optimizer, 1, gamma=0.9), move=move)


@healthy("AMP205", **HALF)
def a_plateau_that_looks_at_the_loss(arm):
    return scheduled(
        arm,
        ReduceLROnPlateau,
        move=lambda scheduler, _, loss: scheduler.step(loss.detach()),
    )


# AMP206 stepped-on-overflow


def own_stepping(arm, optimizer_of, take):
    """A step that unscales, and then steps as `take(optimizer, model)` says."""
    model = mlp()
    optimizer = optimizer_of(model)

    def end(scaler):
        scaler.unscale_(optimizer)
        take(optimizer, model)
        scaler.update()

    return scaled(arm, model, optimizer, end=end)


@faulty("AMP206", **HALF)
def the_optimizers_own_step_after_unscale(arm):
    return own_stepping(arm, sgd, lambda optimizer, _: optimizer.step())


@faulty("AMP206", **HALF)
def the_optimizers_own_step_after_unscale_with_adamw(arm):
    return own_stepping(arm, adamw, lambda optimizer, _: optimizer.step())


def uphill_and_back(arm, cautious):
    """Sharpness-aware: weights move along a gradient, and back before the optimizer steps."""
    model, scaler, (x, y) = mlp(), arm.scaler, batch()
    optimizer, parameters = sgd(model), list(model.parameters())

    def scaled_loss():
        with arm.autocast():
            loss = F.cross_entropy(model(x).float(), y)
        return loss, scaler.scale(loss)

    def step():
        optimizer.zero_grad()
        gradients = torch.autograd.grad(scaled_loss()[1], parameters)
        length = torch.stack([each.norm() for each in gradients]).norm()
        if cautious and not length.isfinite():
            length = torch.full((), torch.inf)
            gradients = [torch.zeros_like(each) for each in gradients]
        moves = [0.05 * each / length for each in gradients]
        with torch.no_grad():
            torch._foreach_add_(parameters, moves)
        loss, times_scale = scaled_loss()
        times_scale.backward()
        with torch.no_grad():
            torch._foreach_sub_(parameters, moves)
        scaler.step(optimizer)
        scaler.update()
        return loss

    return step


@faulty("AMP206", **HALF)
def a_move_along_gradients_that_may_be_inf(arm):
    return uphill_and_back(arm, cautious=False)


@healthy("AMP206", **HALF)
def a_move_along_gradients_that_are_finite(arm):
    return uphill_and_back(arm, cautious=True)


def uphill_with_two_backward_passes(arm, set_to_none):
    """The first pass's gradients are dropped, infinite or not, before the second one begins."""
    model, scaler, (x, y) = mlp(), arm.scaler, batch()
    optimizer, parameters = sgd(model), list(model.parameters())

    def backward():
        optimizer.zero_grad(set_to_none=set_to_none)
        with arm.autocast():
            loss = F.cross_entropy(model(x).float(), y)
        scaler.scale(loss).backward()
        return loss

    def step():
        loss = backward()
        length = torch.stack([p.grad.norm() for p in parameters]).norm()
        moves = [0.05 * p.grad / length for p in parameters] if length.isfinite() else []
        with torch.no_grad():
            for p, move in zip(parameters, moves, strict=False):
                p.add_(move)
        backward()
        with torch.no_grad():
            for p, move in zip(parameters, moves, strict=False):
                p.sub_(move)
        scaler.step(optimizer)
        scaler.update()
        return loss

    return step


@healthy("AMP206", **HALF)
def gradients_that_are_dropped_after_looking_ahead(arm):
    return uphill_with_two_backward_passes(arm, set_to_none=True)


@healthy("AMP206", **HALF)
def gradients_that_are_zeroed_after_looking_ahead(arm):
    return uphill_with_two_backward_passes(arm, set_to_none=False)


@faulty("AMP206", **HALF)
def made_finite_and_stepped_past_the_scaler(arm):
    def take(optimizer, model):
        for p in model.parameters():
            p.grad.nan_to_num_(0.0, 0.0, 0.0)
        optimizer.step()

    return own_stepping(arm, adamw, take)


def averaging(arm, cautious):
    """Adds an average of past gradients to each."""
    model, kept = mlp(), {}
    optimizer = sgd(model)

    def edit(scaler):
        scaler.unscale_(optimizer)
        for p in model.parameters():
            if not cautious or bool(p.grad.isfinite().all()):
                kept[p] = 0.9 * kept.get(p, torch.zeros_like(p)) + 0.1 * p.grad
            p.grad.add_(kept.get(p, torch.zeros_like(p)))

    return scaled(arm, model, optimizer, edit)


@faulty("AMP206", **HALF)
def an_average_of_gradients_that_takes_the_inf_in(arm):
    return averaging(arm, cautious=False)


@healthy("AMP206", **HALF)
def an_average_of_finite_gradients(arm):
    return averaging(arm, cautious=True)


class PlainDescent(torch.optim.Optimizer):
    """Does not look whether there is a gradient."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.05})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"])


@healthy("AMP206", **HALF)
def an_optimizer_of_ones_own_whose_first_steps_are_skipped(arm):
    model = mlp()
    own = GradScaler("cpu", enabled=arm.enabled, init_scale=2.0**20)
    return scaled(arm, model, PlainDescent(model.parameters()), scaler=own)


@faulty("AMP206", **HALF)
def a_scaler_that_always_steps(arm):
    class Hasty(GradScaler):
        def _maybe_opt_step(self, optimizer, optimizer_state, *args, **kwargs):
            return optimizer.step(*args, **kwargs)

    model = mlp()
    own = Hasty("cpu", enabled=arm.enabled, init_scale=2.0**12)
    return scaled(arm, model, adamw(model), scaler=own)


@faulty("AMP206", **HALF)
def a_fused_optimizer_that_does_not_heed_found_inf(arm):
    class Fused(torch.optim.SGD):
        _step_supports_amp_scaling = True

        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                scale = getattr(self, "grad_scale", None)
                p.data.sub_(p.grad if scale is None else p.grad / scale, alpha=0.05)

    model = mlp()
    return scaled(arm, model, Fused(model.parameters(), lr=0.05))


@faulty("AMP206", **HALF)
def the_second_of_two_optimizers_steps_on_an_overflow(arm):
    def step_second(scaler, b):
        scaler.unscale_(b)
        b.step()

    return adversaries(arm, step_second)


@faulty("AMP206", **HALF)
def overflows_that_are_made_finite(arm):
    model = mlp()

    def edit(_):
        for grad in grads(model):
            torch.nan_to_num_(grad, nan=0.0, posinf=0.0, neginf=0.0)

    return scaled(arm, model, sgd(model), edit)


@faulty("AMP206", **HALF)
def overflows_that_are_clamped_by_their_optimizer(arm):
    class Careful(torch.optim.AdamW):
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                torch.nan_to_num_(p.grad, posinf=1.0, neginf=-1.0)
            return super().step(closure)

    return own_stepping(
        arm, lambda model: Careful(model.parameters()), lambda optimizer, _: optimizer.step()
    )


@healthy("AMP206", **HALF)
def sgd_with_momentum_under_a_scaler(arm):
    model = mlp()
    return scaled(arm, model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))


@healthy("AMP206", **HALF)
def fused_adamw_under_a_scaler(arm):
    model = mlp()
    return scaled(arm, model, adamw(model, fused=True))


@healthy("AMP206", **HALF)
def foreach_sgd_under_a_scaler(arm):
    model = mlp()
    return scaled(arm, model, torch.optim.SGD(model.parameters(), lr=0.05, foreach=True))


@healthy("AMP206", **HALF)
def two_optimizers_and_one_scaler(arm):
    return adversaries(arm, lambda scaler, b: scaler.step(b))


@healthy("AMP206", **HALF)
def an_inf_check_by_hand(arm):
    def take(optimizer, model):
        if has_finite_gradients(model):
            optimizer.step()

    return own_stepping(arm, adamw, take)


@healthy("AMP206", **HALF)
def weights_that_are_clamped_after_each_step(arm):
    model = mlp()
    inner = scaled(arm, model, adamw(model))

    def step():
        loss = inner()
        with torch.no_grad():
            for p in model.parameters():
                p.clamp_(-0.3, 0.3)
        return loss

    return step


# AMP207 scale-stuck


@faulty("AMP207", **HALF)
def zeroed_only_after_a_step_that_was_taken(arm):
    model, scaler, (x, y) = mlp(), arm.scaler, batch()
    optimizer = adamw(model)

    def step():
        with arm.autocast():
            loss = F.cross_entropy(model(x).float(), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        before = scaler.get_scale()
        scaler.update()
        if scaler.get_scale() >= before:
            optimizer.zero_grad()
        return loss

    return step


@faulty("AMP207", **HALF)
def a_scaler_made_anew_in_each_step(arm):
    model, (x, y) = mlp(), batch()
    optimizer = adamw(model)

    def step():
        scaler = GradScaler("cpu", enabled=arm.enabled, init_scale=2.0**12)
        optimizer.zero_grad()
        with arm.autocast():
            loss = F.cross_entropy(model(x).float(), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    return step


@faulty("AMP207", **HALF)
def an_overflow_that_the_step_leaves_out_by_itself(arm):
    model = mlp()
    optimizer = adamw(model)

    def end(scaler):
        if has_finite_gradients(model):
            scaler.step(optimizer)
            scaler.update()

    return scaled(arm, model, optimizer, end=end)


@faulty("AMP207", **HALF, steps=16)
def a_scale_that_grows_at_every_step(arm):
    model = mlp()
    own = GradScaler("cpu", enabled=arm.enabled, init_scale=2.0**18, growth_interval=1)
    return scaled(arm, model, adamw(model), scaler=own)


@faulty("AMP207", **HALF, steps=20)
def a_square_root_at_zero(arm):
    model, (x, _) = mlp(), batch()

    def loss_of():
        out = model(x).float()
        return (out - out.detach()).square().sum().sqrt() + out.mean()

    return scaled(arm, model, adamw(model), loss_of=loss_of)


def set_after_each_step(arm, scale):
    model = mlp()
    optimizer = adamw(model)

    def end(scaler):
        scaler.step(optimizer)
        scaler.update(scale)

    return scaled(arm, model, optimizer, end=end)


@faulty("AMP207", **HALF, steps=8)
def a_scale_that_is_set_too_high_every_time(arm):
    return set_after_each_step(arm, 2.0**40)


@healthy("AMP207", **HALF, steps=16)
def a_scale_that_is_found_by_skipping(arm):
    model = mlp()
    own = GradScaler("cpu", enabled=arm.enabled, init_scale=2.0**24)
    return scaled(arm, model, adamw(model), scaler=own)


@healthy("AMP207", **HALF)
def a_scale_that_stays(arm):
    return set_after_each_step(arm, 2.0**10)


@healthy("AMP207", **HALF, steps=16)
def one_batch_that_overflows(arm):
    model, count, (x, y) = mlp(), itertools.count(), batch()

    def loss_of():
        loss = F.cross_entropy(model(x).float(), y)
        outlier = arm.enabled and next(count) == 5
        return loss * 1e36 * 1e-36 if not outlier else loss + (loss - loss.detach()) * 1e36

    return scaled(arm, model, adamw(model), loss_of=loss_of)


# AMP208 scaler-bypassed


@faulty("AMP208", **HALF)
def the_optimizers_own_step_on_scaled_gradients(arm):
    model = mlp()
    optimizer = adamw(model)
    return scaled(arm, model, optimizer, end=lambda _: optimizer.step())


@faulty("AMP208", **HALF)
def the_second_of_two_optimizers_bypasses_the_scaler(arm):
    return adversaries(arm, lambda _, b: b.step())


@faulty("AMP208", **HALF)
def the_second_microbatch_is_not_scaled(arm):
    model = mlp()
    return accumulating(arm, adamw(model), model, scales=(True, False))


@faulty("AMP208", **HALF)
def an_auxiliary_loss_that_is_not_scaled(arm):
    model, (x, _) = mlp(), batch()

    def edit(_):
        with arm.autocast():
            loss = model(x).float().square().mean()
        loss.backward()

    return scaled(arm, model, sgd(model), edit)


@faulty("AMP208", **HALF)
def one_of_two_models_whose_loss_is_not_scaled(arm):
    first, second, scaler, (x, y) = mlp(), mlp(), arm.scaler, batch()
    a, b = adamw(first), adamw(second, fused=True)

    def step():
        a.zero_grad()
        b.zero_grad()
        with arm.autocast():
            one, two = (F.cross_entropy(model(x).float(), y) for model in (first, second))
        scaler.scale(one).backward()
        two.backward()
        scaler.step(a)
        scaler.step(b)
        scaler.update()
        return {"one": one, "two": two}

    return step


@healthy("AMP208", **HALF)
def two_losses_scaled_and_added_up(arm):
    model, (x, _) = mlp(), batch()

    def edit(scaler):
        with arm.autocast():
            loss = model(x).float().square().mean()
        scaler.scale(loss).backward()

    return scaled(arm, model, sgd(model), edit)


@healthy("AMP208", **HALF)
def unscaled_by_hand_and_stepped_by_hand(arm):
    model = mlp()
    optimizer = adamw(model)

    def end(scaler):
        for grad in grads(model):
            grad.div_(scaler.get_scale())
        if has_finite_gradients(model):
            optimizer.step()

    return scaled(arm, model, optimizer, end=end)


@healthy("AMP208", **HALF)
def a_gradient_penalty(arm):
    model, scaler, (x, y) = mlp(), arm.scaler, batch()
    optimizer = adamw(model)

    def step():
        optimizer.zero_grad()
        with arm.autocast():
            loss = F.cross_entropy(model(x).float(), y)
        gradients = torch.autograd.grad(
            scaler.scale(loss), list(model.parameters()), create_graph=True
        )
        inverse = 1.0 / scaler.get_scale()
        with arm.autocast():
            norm = sum((gradient * inverse).square().sum() for gradient in gradients).sqrt()
            total = loss + 0.1 * norm
        scaler.scale(total).backward()
        scaler.step(optimizer)
        scaler.update()
        return total

    return step


@healthy("AMP208", **HALF)
def an_adversarial_example_from_a_loss_that_is_not_scaled(arm):
    model, (x, y) = mlp(), batch()

    def loss_of():
        inputs = x.clone().requires_grad_()
        loss = F.cross_entropy(model(inputs).float(), y)
        with torch.autocast("cpu", enabled=False):
            loss.backward()
        attacked = x + 0.1 * inputs.grad.sign()
        model.zero_grad()
        return F.cross_entropy(model(attacked).float(), y)

    return scaled(arm, model, adamw(model), loss_of=loss_of)
