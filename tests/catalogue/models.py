"""Healthy steps of whole models, of which no rule may say anything."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.catalogue.registry import healthy
from tests.catalogue.steps import sgd
from tests.helpers.lab import train


@healthy("AMP304")
def a_hugging_face_causal_lm(arm):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2, n_inner=64
    )
    model = transformers.GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.randint(64, (4, 16))

    def loss_of():
        return model(input_ids=tokens, labels=tokens).loss

    return train(arm, optimizer, loss_of)


@healthy("AMP303", dtype="float16")
def a_small_transformer_in_float16(arm):
    layer = nn.TransformerEncoderLayer(32, 2, 64, 0.1, batch_first=True, norm_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    x = torch.randn(4, 12, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return train(arm, optimizer, lambda: F.mse_loss(model(x).float(), x))


@healthy("AMP104")
def a_convolutional_network_with_batch_norm(arm):
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    )  # fmt: skip
    x, y = torch.randn(8, 1, 8, 8), torch.randint(4, (8,))
    return train(arm, sgd(model), lambda: F.cross_entropy(model(x).float(), y))


@healthy("AMP402")
def a_diffusion_step(arm):
    """Noise in float32, a random time for each example, and the noise to be found."""
    model = nn.Sequential(nn.Linear(9, 32), nn.SiLU(), nn.Linear(32, 8))
    x = torch.randn(16, 8)

    def loss_of():
        time, noise = torch.rand(16, 1), torch.randn(16, 8)
        mixed = (1 - time).sqrt() * x + time.sqrt() * noise
        return F.mse_loss(model(torch.cat([mixed, time], 1)).float(), noise)

    return train(arm, sgd(model), loss_of)


@healthy("AMP104", steps=8)
def a_routed_mixture_of_experts(arm):
    router, experts = nn.Linear(8, 4), nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
    x, y = torch.randn(16, 8), torch.randint(8, (16,))

    def loss_of():
        weights = router(x).float().softmax(-1)
        best, which = weights.max(-1)
        out = torch.zeros(16, 8)
        for index, expert in enumerate(experts):
            mine = which == index
            if mine.any():
                out[mine] = expert(x[mine]).float()
        return F.cross_entropy(out * best.unsqueeze(-1), y)

    return train(arm, sgd(router, experts, lr=0.01), loss_of)


@healthy("AMP107")
def a_gated_recurrent_network(arm):
    cell, head = nn.GRUCell(8, 16), nn.Linear(16, 4)
    x, y = torch.randn(5, 16, 8), torch.randint(4, (16,))

    def loss_of():
        h = x.new_zeros(16, 16).to(arm.dtype)
        for each in x.to(arm.dtype):
            h = cell(each, h)
        return F.cross_entropy(head(h).float(), y)

    return train(arm, sgd(cell, head), loss_of)


@healthy("AMP302", dtype="float16")
def embeddings_of_which_few_rows_are_used(arm):
    table, head = nn.Embedding(200, 16), nn.Linear(16, 4)
    words, y = torch.randint(200, (16,)), torch.randint(4, (16,))
    optimizer = torch.optim.AdamW([*table.parameters(), *head.parameters()], lr=1e-3)
    return train(arm, optimizer, lambda: F.cross_entropy(head(table(words)).float(), y))
