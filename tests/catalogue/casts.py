"""AMP406: casts up that nothing has a use for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.catalogue.registry import faulty, healthy
from tests.catalogue.steps import sgd
from tests.helpers.lab import train

# AMP406 wasted-casts


class Block(nn.Module):
    """A layer and a ReLU, with something done to the input before the layer."""

    def __init__(self, before, width=64):
        super().__init__()
        self.before, self.layer = before, nn.Linear(width, width)

    def forward(self, x):
        return self.layer(self.before(x)).relu()


def blocks(arm, before, examples=512):
    model, x = nn.Sequential(*(Block(before) for _ in range(4))), torch.randn(examples, 64)
    return train(arm, sgd(model), lambda: model(x).float().square().mean())


class Adapted(nn.Module):
    """A low-rank adapter that casts its input to its weights' dtype."""

    def __init__(self, width=64, rank=4, cast=True):
        super().__init__()
        self.base = nn.Linear(width, width).requires_grad_(False)
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
        self.dropout = nn.Dropout(0.1)
        self.cast = cast

    def forward(self, x):
        own = x.to(self.down.weight.dtype) if self.cast else x
        return self.base(x) + self.up(self.down(self.dropout(own)))


def adapted(arm, cast):
    model = nn.Sequential(*(m for _ in range(4) for m in (Adapted(cast=cast), nn.ReLU())))
    x, y = torch.randn(512, 64), torch.randn(512, 64)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    return train(arm, optimizer, lambda: F.mse_loss(model(x).float(), y))


@faulty("AMP406")
def an_adapter_that_casts_its_input(arm):
    return adapted(arm, cast=True)


@faulty("AMP406")
def activations_that_are_cast_up_before_each_layer(arm):
    return blocks(arm, lambda x: x.float())


@faulty("AMP406", dtype="float16")
def a_relu_in_float32_before_each_layer(arm):
    return blocks(arm, lambda x: x.to(torch.float32).relu())


@faulty("AMP406")
def a_loop_that_casts_what_it_joins(arm):
    layers = nn.ModuleList(nn.Linear(128, 64) for _ in range(4))
    x = torch.randn(2048, 64)

    def loss_of():
        left = right = x.to(arm.dtype)
        for layer in layers:
            both = torch.cat([left.type(torch.float32), right.type(torch.float32)], -1)
            left, right = layer(both).tanh(), left
        return left.float().square().mean()

    return train(arm, sgd(layers), loss_of)


@faulty("AMP406")
def heads_that_share_an_input_that_was_cast_up(arm):
    body, heads = nn.Linear(64, 64), nn.ModuleList(nn.Linear(64, 8) for _ in range(3))
    x = torch.randn(512, 64)

    def loss_of():
        wide = body(x).tanh().float()
        return sum(head(wide).float().square().mean() for head in heads)

    return train(arm, sgd(body, heads), loss_of)


@healthy("AMP406")
def an_adapter_that_leaves_casts_to_autocast(arm):
    return adapted(arm, cast=False)


@healthy("AMP406")
def a_norm_by_hand_in_float32(arm):
    def norm(x):
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).type_as(x)

    return blocks(arm, norm)


@healthy("AMP406", dtype="float16")
def a_layer_norm_that_autocast_widens(arm):
    return blocks(arm, lambda x: F.layer_norm(x.float(), (64,)))


@healthy("AMP406")
def attention_whose_softmax_is_in_float32(arm):
    model, x = nn.Linear(64, 64), torch.randn(4, 64, 64)

    def loss_of():
        h = model(x)
        weights = (h @ h.transpose(1, 2)).float().softmax(-1).to(h.dtype)
        return (weights @ h).float().square().mean()

    return train(arm, sgd(model), loss_of)


@healthy("AMP406")
def a_residual_stream_in_float32(arm):
    layers, x = nn.ModuleList(nn.Linear(64, 64) for _ in range(4)), torch.randn(512, 64)

    def loss_of():
        stream = x
        for layer in layers:
            stream = stream + layer(stream).float()
        return stream.square().mean()

    return train(arm, sgd(layers), loss_of)


@healthy("AMP406")
def a_float32_time_beside_what_is_cast_up_for_it(arm):
    layers, x, time = nn.ModuleList(nn.Linear(65, 64) for _ in range(3)), torch.randn(512, 64), 0.37

    def loss_of():
        h = x
        for layer in layers:
            h = layer(torch.cat([h.float(), torch.full((512, 1), time)], -1)).tanh()
        return h.float().square().mean()

    return train(arm, sgd(layers), loss_of)


@healthy("AMP406")
def a_cast_up_of_a_small_part(arm):
    layer, head, x = nn.Linear(64, 64), nn.Linear(64, 4), torch.randn(2048, 64)

    def loss_of():
        h = layer(x).tanh()
        return h.square().mean().float() + head(h[:32].float()).float().square().mean()

    return train(arm, sgd(layer, head), loss_of)
