"""AMP1xx: autocast that does nothing, or something else than what is meant."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.catalogue.registry import faulty, healthy
from tests.catalogue.steps import BF16, FP16, batch, classifier, mlp, sgd, stepping
from tests.helpers.lab import train

# AMP101 amp-no-op


@faulty("AMP101")
def the_flag_is_ignored(arm):
    model, (x, y) = mlp(), batch()
    return stepping(arm, sgd(model), lambda: F.cross_entropy(model(x), y))


@faulty("AMP101")
def autocast_of_another_device_type(arm):
    model, (x, y) = mlp(), batch()

    def loss_of():
        with torch.autocast("cuda", enabled=False):
            return F.cross_entropy(model(x), y)

    return stepping(arm, sgd(model), loss_of)


@faulty("AMP101")
def only_the_loss_is_covered(arm):
    model, (x, y) = mlp(), batch()

    def loss_of():
        logits = model(x)
        with arm.autocast():
            return F.cross_entropy(logits, y)

    return stepping(arm, sgd(model), loss_of)


@faulty("AMP101")
def the_region_ends_before_the_forward_pass(arm):
    model, (x, y) = mlp(), batch()

    def loss_of():
        with arm.autocast():
            inputs = x * 1.0
        return F.cross_entropy(model(inputs), y)

    return stepping(arm, sgd(model), loss_of)


@faulty("AMP101")
def the_flag_is_ignored_in_a_compiled_model(arm):
    model, (x, y) = mlp(), batch()
    compiled = torch.compile(model, backend="eager")
    return stepping(arm, sgd(model), lambda: F.cross_entropy(compiled(x), y))


@faulty("AMP101")
def a_region_of_the_models_own_that_nobody_switches_on(arm):
    model, (x, y) = mlp(), batch()

    def forward():
        with torch.autocast("cpu", enabled=False):
            return model(x)

    return train(arm, sgd(model), lambda: F.cross_entropy(forward(), y))


@faulty("AMP101")
def a_switch_that_is_off_in_both_arms(arm):
    model, (x, y) = mlp(), batch()

    def loss_of():
        with torch.autocast("cpu", dtype=BF16, enabled=False):
            return F.cross_entropy(model(x), y)

    return stepping(arm, sgd(model), loss_of)


@healthy("AMP101")
def a_decorated_forward(arm):
    model, (x, y) = mlp(), batch()
    forward = arm.autocast()(model.forward) if arm.enabled else model.forward
    return stepping(arm, sgd(model), lambda: F.cross_entropy(forward(x).float(), y))


@healthy("AMP101")
def a_compiled_model(arm):
    model, (x, y) = mlp(), batch()
    compiled = torch.compile(model, backend="eager")
    return train(arm, sgd(model), lambda: F.cross_entropy(compiled(x).float(), y))


@healthy("AMP101")
def a_step_of_pointwise_operators(arm):
    weight = nn.Parameter(torch.ones(64))
    x = torch.randn(16, 64)
    optimizer = torch.optim.SGD([weight], lr=0.01)
    return train(
        arm, optimizer, lambda: (x.to(arm.dtype) * weight.to(arm.dtype)).float().square().mean()
    )


@healthy("AMP101")
def frozen_layers(arm):
    model = mlp()
    model[0].requires_grad_(False)
    return classifier(arm, model, sgd(model[2]))


# AMP102 half-parameters


@faulty("AMP102")
def a_model_that_is_halved_for_amp(arm):
    model, (x, y) = mlp().to(arm.dtype), batch()
    return stepping(arm, sgd(model), lambda: F.cross_entropy(model(x.to(arm.dtype)).float(), y))


@faulty("AMP102")
def one_layer_that_is_halved(arm):
    model = mlp()
    model[2].to(arm.dtype)
    return classifier(arm, model)


@faulty("AMP102", dtype="float16")
def a_halved_model_with_a_scaler_that_is_off(arm):
    model, (x, y) = mlp().to(arm.dtype), batch()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizer = sgd(model)

    def step():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x.to(arm.dtype)).float(), y)
        scaler.scale(loss * 128).backward()
        for param in model.parameters():
            param.grad /= 128
        scaler.step(optimizer)
        return loss.detach()

    return step


@faulty("AMP102", dtype="float16")
def a_halved_model_with_a_scaler(arm):
    """torch refuses it: the test ends in that error, and this finding says what it means."""
    model, (x, y) = mlp().to(arm.dtype), batch()
    return train(arm, sgd(model), lambda: F.cross_entropy(model(x.to(arm.dtype)).float(), y))


@faulty("AMP102")
def a_parameter_of_its_own_in_the_amp_dtype(arm):
    model, (x, y) = mlp(), batch()
    gain = nn.Parameter(torch.ones(4, dtype=arm.dtype))
    optimizer = torch.optim.SGD([*model.parameters(), gain], lr=0.05)
    return train(arm, optimizer, lambda: F.cross_entropy((model(x) * gain).float(), y))


class Lora(nn.Module):
    """A low-rank update in float32 on a frozen base."""

    def __init__(self, base_dtype):
        super().__init__()
        self.base = nn.Linear(8, 4, bias=False).to(base_dtype).requires_grad_(False)
        self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 4, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x.to(self.base.weight.dtype)).float() + self.up(self.down(x))


@healthy("AMP102", may_warn=("AMP004",))
def lora_over_a_bfloat16_base(arm):
    model = Lora(BF16)
    return classifier(arm, model, torch.optim.AdamW([model.down.weight, model.up.weight]))


@healthy("AMP102")
def lora_over_a_float32_base(arm):
    model = Lora(torch.float32)
    return classifier(arm, model, torch.optim.AdamW([model.down.weight, model.up.weight]))


@healthy("AMP102", may_warn=("AMP102", "AMP004"))
def adapters_in_bfloat16_in_both_arms(arm):
    model = Lora(torch.float32)
    for part in (model.down, model.up):
        part.to(BF16)
    model.forward = lambda x: model.base(x).float() + model.up(model.down(x.to(BF16))).float()
    return classifier(arm, model, torch.optim.AdamW([model.down.weight, model.up.weight]))


@healthy("AMP102")
def tied_weights(arm):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    return classifier(arm, model)


# AMP103 stale-autocast-cache


def two_updates(arm, region, regions):
    model, (x, y) = mlp(), batch()
    optimizer = sgd(model, lr=0.5)

    def update():
        optimizer.zero_grad()
        with regions():
            loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def step():
        with region():
            update()
            return update()

    return step


@faulty("AMP103", ignore=["AMP105"], max_loss_diff=None)
def one_region_around_two_updates(arm):
    return two_updates(arm, arm.autocast, nullcontext)


@faulty("AMP103", ignore=["AMP105"], max_loss_diff=None)
def a_region_that_is_never_left(arm):
    model, (x, y) = mlp(), batch()
    if arm.enabled:
        torch.autocast("cpu", dtype=arm.dtype).__enter__()
    return stepping(arm, sgd(model, lr=0.5), lambda: F.cross_entropy(model(x).float(), y))


@faulty("AMP103", ignore=["AMP105"], max_loss_diff=None)
def a_gan_in_one_region(arm):
    """The generator's loss goes through casts of the discriminator from before its update."""
    generator, critic = nn.Linear(4, 8), nn.Linear(8, 1)
    first, second = sgd(critic, lr=0.5), sgd(generator, lr=0.5)
    noise, real = torch.randn(16, 4), torch.randn(16, 8)

    def step():
        with arm.autocast():
            first.zero_grad()
            made = critic(generator(noise).detach()).float().mean()
            loss = made.square() - critic(real).float().mean()
            loss.backward()
            first.step()
            second.zero_grad()
            fooled = -critic(generator(noise)).float().mean()
            fooled.backward()
            second.step()
        return {"critic": loss.detach(), "generator": fooled.detach()}

    return step


@healthy("AMP103")
def a_region_of_its_own_for_each_update(arm):
    return two_updates(arm, nullcontext, arm.autocast)


@healthy("AMP103", may_warn=("AMP105",))
def a_region_that_ends_with_each_update(arm):
    model, (x, y) = mlp(), batch()
    optimizer = sgd(model)

    def step():
        with arm.autocast():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x).float(), y)
            loss.backward()
            optimizer.step()
        return loss.detach()

    return step


@healthy("AMP103", may_warn=("AMP105",))
def one_region_around_two_updates_without_the_cache(arm):
    def region():
        if not arm.enabled:
            return nullcontext()
        return torch.autocast("cpu", dtype=arm.dtype, cache_enabled=False)

    return two_updates(arm, region, nullcontext)


@healthy("AMP103")
def accumulation_in_one_region(arm):
    model, (x, y) = mlp(), batch()
    optimizer = sgd(model)

    def step():
        optimizer.zero_grad()
        losses = []
        with arm.autocast():
            for part in range(4):
                piece = slice(4 * part, 4 * part + 4)
                losses.append(F.cross_entropy(model(x[piece]).float(), y[piece]) / 4)
        sum(losses).backward()
        optimizer.step()
        return sum(losses).detach()

    return step


# AMP104 missing-gradients


@faulty("AMP104")
def a_cast_of_data(arm):
    model, (x, y) = mlp(), batch()

    def loss_of():
        hidden = (
            F.linear(x.to(arm.dtype), model[0].weight.data.to(arm.dtype))
            if arm.enabled
            else (F.linear(x, model[0].weight))
        )
        return F.cross_entropy(model[2](hidden.float().relu()), y)

    return train(arm, sgd(model), loss_of)


@faulty("AMP104")
def a_no_grad_region_that_fills_the_cache(arm):
    """A teacher's pass under no_grad caches a cast of the student's weights without history."""
    model, (x, y) = mlp(), batch()
    kept = []

    def loss_of():
        if arm.enabled:
            with torch.no_grad():
                kept[:] = [model[0].weight.to(arm.dtype)]
            hidden = F.linear(x.to(arm.dtype), kept[0]).float() + model[0].bias
        else:
            hidden = model[0](x)
        return F.cross_entropy(model[2](hidden.relu()), y)

    return train(arm, sgd(model), loss_of)


@faulty("AMP104")
def a_branch_that_is_detached_for_amp(arm):
    first, second, (x, y) = nn.Linear(8, 4), nn.Linear(8, 4), batch()

    def loss_of():
        side = second(x)
        return F.cross_entropy((first(x) + (side.detach() if arm.enabled else side)).float(), y)

    return train(arm, sgd(first, second), loss_of)


@healthy("AMP104")
def experts_that_are_not_all_called(arm):
    """Routing leaves experts out by turns, in both arms alike."""
    experts, (x, y) = nn.ModuleList(nn.Linear(8, 4) for _ in range(3)), batch()
    turn = iter(range(10_000))
    return train(arm, sgd(experts), lambda: F.cross_entropy(experts[next(turn) % 3](x).float(), y))


@healthy("AMP104")
def a_head_that_no_loss_uses(arm):
    model, unused = mlp(), nn.Linear(4, 4)
    return classifier(arm, model, sgd(model, unused))


@healthy("AMP104")
def sparse_gradients_of_an_embedding(arm):
    table, head = nn.Embedding(20, 8, sparse=True), nn.Linear(8, 4)
    words, y = torch.randint(20, (16,)), torch.randint(4, (16,))
    optimizer = sgd(table, head)
    return train(arm, optimizer, lambda: F.cross_entropy(head(table(words)).float(), y))


# AMP105 backward-under-autocast


@faulty("AMP105")
def a_backward_pass_in_the_region(arm):
    model, (x, y) = mlp(), batch()
    optimizer = sgd(model)

    def step():
        optimizer.zero_grad()
        with arm.autocast():
            loss = F.cross_entropy(model(x).float(), y)
            loss.backward()
        optimizer.step()
        return loss.detach()

    return step


@faulty("AMP105")
def a_decorated_training_step(arm):
    model, (x, y) = mlp(), batch()
    optimizer = sgd(model)

    def training_step():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return arm.autocast()(training_step) if arm.enabled else training_step


@faulty("AMP105")
def a_gradient_penalty_in_the_region(arm):
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    x = torch.randn(16, 8, requires_grad=True)

    def loss_of():
        out = model(x).float()
        [slope] = torch.autograd.grad(out.sum(), x, create_graph=True)
        return out.mean() + (slope.float().norm(dim=1) - 1).square().mean()

    return train(arm, sgd(model), loss_of)


@healthy("AMP105")
def a_backward_pass_after_the_region(arm):
    return classifier(arm, mlp())


@healthy("AMP105")
def a_gradient_penalty_outside_of_the_region(arm):
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    x = torch.randn(16, 8, requires_grad=True)

    def loss_of():
        with arm.autocast():
            out = model(x)
        [slope] = torch.autograd.grad(out.float().sum(), x, create_graph=True)
        with arm.autocast():
            return out.float().mean() + (slope.float().norm(dim=1) - 1).square().mean()

    return stepping(arm, sgd(model), loss_of)


@healthy("AMP105")
def checkpointing(arm):
    model = mlp()
    x, y = batch()

    def loss_of():
        hidden = checkpoint(model[0], x, use_reentrant=False)
        return F.cross_entropy(model[2](hidden.relu()).float(), y)

    return train(arm, sgd(model), loss_of)


# AMP106 recompute-dtype


class Recomputed(torch.autograd.Function):
    """A checkpoint that somebody wrote by hand. `state`: what to recompute under."""

    @staticmethod
    def forward(ctx, run, state, x, *parameters):
        ctx.run, ctx.state = run, state
        ctx.save_for_backward(x, *parameters)
        with torch.no_grad():
            return run(x)

    @staticmethod
    def backward(ctx, grad):
        x, *parameters = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad(), ctx.state():
            out = ctx.run(x)
        grads = torch.autograd.grad(out, [x, *parameters], grad.to(out.dtype))
        return None, None, *grads


def hand_checkpointed(arm, state):
    first, model, (x, y) = nn.Linear(8, 8), mlp(), batch()
    x.requires_grad_()

    def loss_of():
        hidden = Recomputed.apply(first, state, x, *first.parameters())
        return F.cross_entropy(model(hidden).float(), y)

    return train(arm, sgd(first, model), loss_of)


@faulty("AMP106", ignore=["AMP107"])
def a_hand_written_checkpoint_without_autocast(arm):
    return hand_checkpointed(arm, nullcontext)


@faulty("AMP106", ignore=["AMP107"])
def a_hand_written_checkpoint_that_switches_autocast_off(arm):
    return hand_checkpointed(arm, lambda: torch.autocast("cpu", enabled=False))


@faulty("AMP106", ignore=["AMP107", "AMP201"])
def a_hand_written_checkpoint_in_the_other_dtype(arm):
    def state():
        return torch.autocast("cpu", dtype=FP16, enabled=arm.enabled)

    return hand_checkpointed(arm, state)


@healthy("AMP106")
def a_hand_written_checkpoint_under_the_same_autocast(arm):
    return hand_checkpointed(arm, arm.autocast)


@healthy("AMP106")
def reentrant_checkpointing(arm):
    model, (x, y) = mlp(), batch()
    x.requires_grad_()

    def loss_of():
        return F.cross_entropy(checkpoint(model, x, use_reentrant=True).float(), y)

    return train(arm, sgd(model), loss_of)


@healthy("AMP106")
def a_checkpointed_block_with_dropout(arm):
    block = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.ReLU())
    head, (x, y) = nn.Linear(8, 4), batch()

    def loss_of():
        return F.cross_entropy(head(checkpoint(block, x, use_reentrant=False)).float(), y)

    return train(arm, sgd(block, head), loss_of)


# AMP107 custom-function-dtype


def product(forward_cast, backward_cast):
    """A custom matrix product whose two directions cast as they are told."""

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            x, weight = forward_cast(x), forward_cast(weight)
            ctx.save_for_backward(x, weight)
            with torch.autocast("cpu", enabled=False):
                return x @ weight

        @staticmethod
        def backward(ctx, grad):
            x, weight = (backward_cast(each) for each in ctx.saved_tensors)
            grad = backward_cast(grad)
            return (grad @ weight.t()).float(), (x.t() @ grad).float()

    return Product


def with_product(arm, forward_cast, backward_cast):
    weight, (x, y) = nn.Parameter(torch.randn(8, 8) / 3), batch()
    head = mlp(64)
    own = product(forward_cast, backward_cast) if arm.enabled else product(_same, _same)
    optimizer = torch.optim.SGD([weight, *head.parameters()], lr=0.05)
    return train(
        arm, optimizer, lambda: F.cross_entropy(head(own.apply(x, weight).float()).float(), y)
    )


def _same(tensor):
    return tensor


@faulty("AMP107", ignore=["AMP201"])
def a_bfloat16_forward_and_a_float16_backward(arm):
    return with_product(arm, lambda t: t.to(BF16), lambda t: t.to(FP16))


@faulty("AMP107")
def a_bfloat16_forward_and_a_float32_backward(arm):
    return with_product(arm, lambda t: t.to(BF16), lambda t: t.float())


@faulty("AMP107")
def a_float32_forward_and_a_bfloat16_backward(arm):
    return with_product(arm, lambda t: t.float(), lambda t: t.to(BF16))


@healthy("AMP107")
def a_custom_function_in_bfloat16(arm):
    return with_product(arm, lambda t: t.to(BF16), lambda t: t.to(BF16))


@healthy("AMP107")
def a_custom_function_in_float32(arm):
    return with_product(arm, lambda t: t.float(), lambda t: t.float())


class Decorated(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight.t(), x.t() @ grad


@healthy("AMP107")
def a_decorated_custom_function(arm):
    weight, (x, y) = nn.Parameter(torch.randn(8, 8) / 3), batch()
    head = nn.Linear(8, 4)
    optimizer = torch.optim.SGD([weight, *head.parameters()], lr=0.05)
    return train(
        arm, optimizer, lambda: F.cross_entropy(head(Decorated.apply(x, weight)).float(), y)
    )


# AMP108 dtype-substituted


@faulty("AMP108", dtype="float16", ignore=["AMP2"])
def bfloat16_where_float16_was_asked_for(arm):
    model, (x, y) = mlp(), batch()

    def loss_of():
        with torch.autocast("cpu", dtype=BF16, enabled=arm.enabled):
            return F.cross_entropy(model(x).float(), y)

    return stepping(arm, sgd(model), loss_of)


@faulty("AMP108", ignore=["AMP2"])
def float16_where_bfloat16_was_asked_for(arm):
    model, (x, y) = mlp(), batch()

    def loss_of():
        with torch.autocast("cpu", dtype=FP16, enabled=arm.enabled):
            return F.cross_entropy(model(x).float(), y)

    return stepping(arm, sgd(model), loss_of)


@faulty("AMP108", dtype="float16", ignore=["AMP2"])
def a_trainer_that_knows_only_bfloat16(arm):
    model, (x, y) = mlp(), batch()
    kind = {"no": torch.float32}.get(arm.mixed_precision, BF16)

    def loss_of():
        with torch.autocast("cpu", dtype=BF16, enabled=kind is BF16):
            return F.cross_entropy(model(x).float(), y)

    return stepping(arm, sgd(model), loss_of)


@healthy("AMP108", dtype="float16")
def float16_as_it_was_asked_for(arm):
    return classifier(arm, mlp())


@healthy("AMP108")
def bfloat16_as_it_was_asked_for(arm):
    return classifier(arm, mlp())


@healthy("AMP108", dtype="float16")
def float16_that_is_handed_on(arm):
    model, (x, y) = mlp(), batch()

    def loss_of():
        with torch.autocast("cpu", dtype=arm.dtype, enabled=arm.enabled):
            return F.cross_entropy(model(x).float(), y)

    optimizer = sgd(model)

    def step():
        optimizer.zero_grad()
        loss = loss_of()
        arm.scaler.scale(loss).backward()
        arm.scaler.step(optimizer)
        arm.scaler.update()
        return loss.detach()

    return step
