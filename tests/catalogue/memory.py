"""AMP5xx: memory that mixed precision was to save, and does not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.catalogue.registry import faulty, healthy
from tests.catalogue.steps import batch, classifier, mlp, sgd
from tests.helpers.lab import train

# AMP501 memory-not-reduced. Weights dominate a step with one example; activations one with many.

ASKED = {"min_memory_reduction": 0.2}


def wide(arm, examples, optimizer_of=sgd, width=512):
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
    x = torch.randn(examples, width)
    return train(arm, optimizer_of(model), lambda: model(x).float().square().mean())


def adamw(model):
    return torch.optim.AdamW(model.parameters())


@faulty("AMP501", **ASKED)
def optimizer_state_dominates(arm):
    return wide(arm, 1, adamw)


@faulty("AMP501", **ASKED)
def weights_and_their_casts_dominate(arm):
    return wide(arm, 2)


@faulty("AMP501", **ASKED)
def activations_that_are_kept_in_float32(arm):
    model, x = nn.Linear(64, 64), torch.randn(2048, 64)
    kept = nn.Sequential(*(nn.GELU() for _ in range(6)))
    return train(arm, sgd(model), lambda: kept(model(x).float()).square().mean())


@healthy("AMP501", min_memory_reduction=0.3)
def activations_in_the_amp_dtype(arm):
    model, x = nn.Linear(64, 64), torch.randn(8192, 1).expand(8192, 64).clone()
    thin = nn.Sequential(*(nn.GELU() for _ in range(12)))
    return train(arm, sgd(model), lambda: thin(model(x)).mean().float())


@healthy("AMP501")
def a_step_of_which_no_less_memory_was_asked(arm):
    return wide(arm, 1, adamw, 64)


@healthy("AMP501", min_memory_reduction=-0.5)
def a_step_that_may_take_a_little_more(arm):
    return wide(arm, 16, adamw, 64)


# AMP502 memory-growth


def keeping(arm, keep):
    """The plain step, and a list that grows."""
    model, (x, y) = mlp(64), batch(256)
    optimizer = sgd(model)
    past = []

    def step():
        optimizer.zero_grad()
        with arm.autocast():
            logits = model(x)
            loss = F.cross_entropy(logits.float(), y)
        arm.scaler.scale(loss).backward()
        arm.scaler.step(optimizer)
        arm.scaler.update()
        keep(past, logits, loss)
        return loss.detach()

    return step


@faulty("AMP502", steps=10)
def amp_keeps_its_outputs(arm):
    def keep(past, logits, loss):
        if arm.enabled:
            past.append(logits.detach().clone())

    return keeping(arm, keep)


@faulty("AMP502", steps=10)
def amp_keeps_a_copy_of_its_weights(arm):
    weights = nn.Linear(64, 64)

    def keep(past, logits, loss):
        if arm.enabled:
            past.append(weights.weight.detach().to(arm.dtype))

    return keeping(arm, keep)


@faulty("AMP502", steps=10)
def amp_keeps_graphs_by_losses_that_are_not_detached(arm):
    model, (x, y) = mlp(64), batch(256)
    optimizer = sgd(model)
    log = []

    def step():
        optimizer.zero_grad()
        with arm.autocast():
            loss = F.cross_entropy(model(x).float(), y)
        loss.backward(retain_graph=arm.enabled)
        optimizer.step()
        if arm.enabled:
            log.append(loss)
        return loss.detach()

    return step


@healthy("AMP502", steps=10)
def losses_that_are_logged_as_numbers(arm):
    return keeping(arm, lambda past, _, loss: past.append(loss.item()))


@healthy("AMP502", steps=10)
def a_window_of_past_outputs(arm):
    def keep(past, logits, loss):
        past.append(logits.detach())
        del past[:-2]

    return keeping(arm, keep)


@healthy("AMP502", steps=10)
def optimizer_state_that_is_made_in_the_first_step(arm):
    model = mlp(256)
    return classifier(arm, model, adamw(model))


# AMP503 cast-materialised


def attended(arm, mask_of):
    """Attention scores with a mask that is the same for all heads and examples."""
    model, x = nn.Linear(16, 16), torch.randn(4, 64, 16)

    def loss_of():
        h = model(x)
        scores = h @ h.transpose(1, 2)
        return (scores.unsqueeze(1) + mask_of(scores.dtype)).softmax(-1).float().square().mean()

    return train(arm, sgd(model), loss_of)


@faulty("AMP503")
def an_expanded_buffer_that_is_cast_before_it_is_cut(arm):
    model, x = nn.Linear(16, 16), torch.randn(8, 16)
    positions = torch.randn(1, 16).expand(50_000, 16)

    def loss_of():
        near = positions.to(arm.dtype)[:8] if arm.enabled else positions[:8]
        return (model(x) + near).float().square().mean()

    return train(arm, sgd(model), loss_of)


@faulty("AMP503")
def an_expanded_bias_that_is_cast_by_autocast(arm):
    bias = torch.randn(1, 64).expand(16_384, 64)
    weight = nn.Parameter(torch.randn(64, 8) / 8)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    return train(arm, optimizer, lambda: (bias @ weight).float().square().mean())


@faulty("AMP503")
def a_table_that_is_cast_for_a_few_of_its_rows(arm):
    table = nn.Embedding(20_000, 64).requires_grad_(False)
    rows = torch.randint(20_000, (8,))
    head = nn.Linear(64, 4)
    return train(
        arm,
        torch.optim.SGD(head.parameters(), lr=0.1),
        lambda: head(table.weight.to(arm.dtype)[rows].float()).float().square().mean(),
    )


@healthy("AMP503")
def a_mask_that_is_cast_before_it_is_expanded(arm):
    mask = torch.zeros(1, 1, 64, 64)
    return attended(arm, lambda dtype: mask.to(dtype).expand(4, 8, 64, 64))


@healthy("AMP503")
def a_mask_that_broadcasts(arm):
    mask = torch.zeros(1, 1, 64, 64)
    return attended(arm, mask.to)


@healthy("AMP503")
def a_table_of_which_rows_are_cast(arm):
    table, head = nn.Embedding(2_000, 64), nn.Linear(64, 4)
    rows = torch.randint(2_000, (8,))
    return train(
        arm,
        torch.optim.SGD(head.parameters(), lr=0.1),
        lambda: head(table(rows)).float().square().mean(),
    )


def embedded(arm, embedding):
    """Embeddings are looked up in float32, as their table is, and autocast casts what they give."""
    head = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))
    words = torch.randint(30, (16_384,))
    parameters = [p for p in (*embedding.parameters(), *head.parameters()) if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    return train(arm, optimizer, lambda: head(embedding(words)).float().square().mean())


@healthy("AMP503")
def an_embedding_before_a_linear_layer(arm):
    return embedded(arm, nn.Embedding(30, 64))


@healthy("AMP503")
def a_frozen_embedding_before_a_linear_layer(arm):
    return embedded(arm, nn.Embedding(30, 64).requires_grad_(False))


@healthy("AMP503")
def a_norm_before_a_linear_layer(arm):
    """Autocast keeps the norm in float32, and casts what it returns."""
    return embedded(arm, nn.Sequential(nn.Embedding(30, 64), nn.LayerNorm(64)))


@faulty("AMP503")
def a_large_float32_matrix_that_the_step_makes(arm):
    model, x = nn.Linear(16, 16), torch.randn(1024, 16)

    def loss_of():
        h = model(x)
        return (torch.eye(1024) @ h).float().square().mean()

    return train(arm, sgd(model), loss_of)
