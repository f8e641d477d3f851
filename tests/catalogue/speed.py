"""AMP4xx: why mixed precision is not faster. What is timed is timed on a simulated clock."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.catalogue.measurement import Noisy
from tests.catalogue.registry import faulty, healthy
from tests.catalogue.steps import batch, classifier, mlp, sgd, stepping
from tests.helpers.lab import train

# AMP401 no-native-support


class Old(Noisy):
    """A device that emulates the amp dtype."""

    def native_support(self, _):
        return False


OLD, NEW = Old(lambda *_: 1.0), Noisy(lambda *_: 1.0)


def timed(device, **gates):
    return {"device": device, "static": False, "max_time": 10, **gates}


@faulty("AMP401", **timed(OLD))
def an_emulated_dtype_that_is_slower(arm):
    return OLD.timed(arm, 0.005, 0.05)


@faulty("AMP401", **timed(OLD, min_speedup=1.3))
def an_emulated_dtype_that_fails_its_gate(arm):
    return OLD.timed(arm, 0.01, 0.01)


@faulty("AMP401", **timed(OLD, min_speedup=1.3, dtype="float16"))
def emulated_float16(arm):
    return OLD.timed(arm, 0.005, 0.01)


@healthy("AMP401", **timed(OLD, min_speedup=1.3))
def an_emulated_dtype_that_gains_all_the_same(arm):
    """Pointwise steps gain by their bytes, native products or not."""
    return OLD.timed(arm, 0.01, 0.005)


@healthy("AMP401", **timed(NEW, min_speedup=1.3))
def a_native_dtype(arm):
    return NEW.timed(arm, 0.01, 0.005)


@healthy("AMP401")
def a_static_run(arm):
    return classifier(arm, mlp())


# AMP402 fp32-fallback


@faulty("AMP402")
def half_of_the_model_outside_of_the_region(arm):
    first, second, (x, y) = nn.Linear(8, 32), nn.Linear(32, 4), batch()

    def loss_of():
        with arm.autocast():
            h = first(x)
        return F.cross_entropy(second(h.float().relu()), y)

    return stepping(arm, sgd(first, second), loss_of)


@faulty("AMP402")
def a_decoder_behind_the_region(arm):
    project, (x, y) = nn.Linear(16, 16), (torch.randn(2, 12, 16), torch.randint(16, (24,)))
    decoder = nn.Parameter(torch.randn(16, 16) / 4)

    def loss_of():
        with arm.autocast():
            q = project(x)
        return F.cross_entropy(F.linear(q.float(), decoder).flatten(0, 1), y)

    optimizer = torch.optim.SGD([*project.parameters(), decoder], lr=0.05)
    return stepping(arm, optimizer, loss_of)


@faulty("AMP402")
def a_loss_head_that_was_forgotten(arm):
    body, head = nn.Linear(8, 16), nn.Linear(16, 256)
    x, y = torch.randn(16, 8), torch.randint(256, (16,))

    def loss_of():
        with arm.autocast():
            h = body(x)
        return F.cross_entropy(head(h.float()), y)

    return stepping(arm, sgd(body, head), loss_of)


@faulty("AMP402")
def a_switch_for_another_device(arm):
    """Which keeps nothing in float32 on purpose here."""
    body, head, (x, y) = nn.Linear(8, 16), nn.Linear(16, 64), batch()

    def loss_of():
        with arm.autocast():
            h = body(x)
        with torch.autocast("cuda", enabled=False):
            return F.cross_entropy(head(h.float()), y)

    return stepping(arm, sgd(body, head), loss_of)


@healthy("AMP402")
def a_small_part_kept_in_float32_on_purpose(arm):
    model, gate, (x, y) = mlp(64), nn.Linear(8, 1), batch()

    def loss_of():
        with torch.autocast("cpu", enabled=False):
            weight = gate(x).sigmoid()
        return F.cross_entropy(model(x).float() * weight, y)

    return train(arm, sgd(model, gate), loss_of)


@healthy("AMP402")
def attention_with_autocast_switched_off(arm):
    """As AMP301 advises: what was switched off was not forgotten."""
    project, (x, y) = nn.Linear(16, 16), (torch.randn(2, 12, 16), torch.randint(16, (24,)))

    def loss_of():
        q = project(x)
        with torch.autocast("cpu", enabled=False):
            q = q.float()
            h = (q @ q.transpose(1, 2)).softmax(-1) @ q
        return F.cross_entropy(h.flatten(0, 1), y)

    return train(arm, sgd(project), loss_of)


@healthy("AMP402")
def a_loss_that_compares_in_float32(arm):
    """Its products are of what was cast up for it, behind the region, and of no weights."""
    project, x = nn.Linear(16, 16), torch.randn(24, 16)

    def loss_of():
        with arm.autocast():
            h = project(x)
        h = F.normalize(h.float(), dim=-1)
        return F.cross_entropy(h @ h.T / 0.5, torch.arange(24))

    return stepping(arm, sgd(project), loss_of)


@healthy("AMP402")
def attention_with_dropout(arm):
    """Which computes in float32 on a CPU, under autocast too."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.2, batch_first=True)
    head = nn.Linear(16, 4)
    x, y = torch.randn(4, 6, 16), torch.randint(4, (24,))
    return train(
        arm, sgd(layer, head), lambda: F.cross_entropy(head(layer(x)).float().flatten(0, 1), y)
    )


@healthy("AMP402")
def layer_norm_and_softmax(arm):
    """They are on autocast's list for float32, and have no products."""
    model = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.Softmax(-1), nn.Linear(32, 4))
    return classifier(arm, model)


# AMP403 cast-bound


@faulty("AMP403")
def one_example_and_many_weights(arm):
    model = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024))
    x = torch.randn(1, 1024)
    return train(arm, sgd(model), lambda: model(x).float().square().mean())


@faulty("AMP403")
def casts_back_and_forth_in_every_layer(arm):
    model, x = nn.Linear(64, 64), torch.randn(2048, 64)

    def loss_of():
        h = model(x)
        for _ in range(6):
            h = (h.float() * 1.01).to(arm.dtype) if arm.enabled else h * 1.01
        return h.float().square().mean()

    return train(arm, sgd(model), loss_of)


@faulty("AMP403")
def weights_that_are_cast_anew_for_each_of_few_tokens(arm):
    model = nn.ModuleList(nn.Linear(768, 768) for _ in range(3))
    x = torch.randn(2, 768)

    def loss_of():
        h = x
        for layer in model:
            h = F.linear(h.to(arm.dtype), layer.weight.to(arm.dtype)).relu()
        return h.float().square().mean()

    return train(arm, sgd(model), loss_of)


@healthy("AMP403")
def many_examples(arm):
    model = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
    x = torch.randn(4096, 128)
    return train(arm, sgd(model, lr=1e-3), lambda: model(x).float().mean())


@healthy("AMP403")
def a_step_too_small_to_matter(arm):
    return classifier(arm, mlp())


@healthy("AMP403")
def pointwise_work_in_the_amp_dtype(arm):
    model, x = nn.Linear(1, 64), torch.randn(4096, 1)

    def loss_of():
        h = model(x)
        for _ in range(12):
            h = h * 1.01 + 0.01
        return h.mean().float()

    return train(arm, sgd(model), loss_of)
