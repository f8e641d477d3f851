"""AMP109: steps that raise under autocast alone, or only without it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.catalogue.registry import faulty, healthy
from tests.catalogue.steps import batch, classifier, mlp, sgd, stepping
from tests.helpers.lab import train


def merged_into_an_embedding(arm, convert):
    image, text, head = nn.Linear(8, 16), nn.Embedding(10, 16), nn.Linear(16, 4)
    ids, y = torch.randint(10, (4, 8)), torch.randint(4, (32,))
    x = torch.randn(int((ids == 0).sum()), 8)

    def loss_of():
        merged = text(ids).clone()
        merged[ids == 0] = convert(image(x), merged)
        return F.cross_entropy(head(merged).flatten(0, 1).float(), y)

    return train(arm, sgd(image, text, head), loss_of)


@faulty("AMP109")
def features_are_put_into_an_embedding(arm):
    return merged_into_an_embedding(arm, lambda source, _: source)


@healthy("AMP109")
def features_are_put_into_an_embedding_in_its_dtype(arm):
    return merged_into_an_embedding(arm, lambda source, merged: source.to(merged.dtype))


class Pooled(nn.Module):
    """Adds up rows by group, in a buffer of zeros that is made with or without the rows' dtype."""

    def __init__(self, alike: bool) -> None:
        super().__init__()
        self.inner, self.alike = mlp(), alike

    def forward(self, x):
        rows = self.inner(x)
        zeros = rows.new_zeros(16, 4) if self.alike else torch.zeros(16, 4)
        return zeros.index_add(0, torch.arange(16) // 2, rows)


@faulty("AMP109", dtype="float16")
def rows_are_added_up_in_float32(arm):
    return classifier(arm, Pooled(alike=False))


@healthy("AMP109", dtype="float16")
def rows_are_added_up_in_their_own_dtype(arm):
    return classifier(arm, Pooled(alike=True))


class Product(torch.autograd.Function):
    """Its forward pass is cast by autocast, and its backward pass is not."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight.t(), x.t() @ gradient


class CastProduct(Product):
    """The same, decorated."""

    forward = staticmethod(
        torch.amp.custom_fwd(Product.forward, device_type="cpu", cast_inputs=torch.float32)
    )
    backward = staticmethod(torch.amp.custom_bwd(Product.backward, device_type="cpu"))


def through(arm, function):
    model, weight, (x, y) = mlp(), nn.Parameter(torch.randn(4, 4)), batch()
    optimizer = torch.optim.SGD([*model.parameters(), weight], lr=0.05)
    return train(
        arm, optimizer, lambda: F.cross_entropy(function.apply(model(x), weight).float(), y)
    )


@faulty("AMP109")
def a_custom_function_without_the_decorators(arm):
    return through(arm, Product)


@healthy("AMP109")
def a_custom_function_with_the_decorators(arm):
    return through(arm, CastProduct)


def after_the_region(arm, convert):
    body, head, (x, y) = mlp(), nn.Linear(4, 4), batch()

    def loss_of():
        with arm.autocast():
            features = body(x)
        return F.cross_entropy(head(convert(features)), y)

    return stepping(arm, sgd(body, head), loss_of)


@faulty("AMP109", dtype="float16")
def a_head_after_the_region(arm):
    return after_the_region(arm, lambda features: features)


@healthy("AMP109")
def a_head_after_the_region_on_float32(arm):
    return after_the_region(arm, lambda features: features.float())


@faulty("AMP109")
def features_are_logged_through_numpy(arm):
    model, (x, y) = mlp(), batch()
    seen = []

    def loss_of():
        logits = model(x)
        seen.append(logits.detach().numpy().mean())
        return F.cross_entropy(logits.float(), y)

    return train(arm, sgd(model), loss_of)


@faulty("AMP109")
def inputs_are_cast_whatever_the_arm(arm):
    model, (x, y) = mlp(), batch()
    return train(arm, sgd(model), lambda: F.cross_entropy(model(x.bfloat16()).float(), y))
