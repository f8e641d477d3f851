"""Train public architectures in static tests under CUDA's rules: what is found, and how fast.

Each is made from a configuration, and healthy: no error is wanted. Run it with transformers, timm,
torch_geometric and x-transformers; what is not installed is left out.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings

import torch
import torch.nn.functional as F
from cuda_policy import MODELS, TOKENS, inputs_of
from torch import nn

import pytest_amp


def x_transformers(**more):
    def build():
        from x_transformers import Decoder, TransformerWrapper

        layers = Decoder(dim=32, depth=2, heads=2, attn_dim_head=16, **more)
        return TransformerWrapper(num_tokens=99, max_seq_len=32, attn_layers=layers)

    return build


def geometric(kind, **more):
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            import torch_geometric.nn

            self.first = getattr(torch_geometric.nn, kind)(16, 32, **more)
            self.second = getattr(torch_geometric.nn, kind)(32, 8, **more)
            self.register_buffer("edges", torch.randint(20, (2, 80)))

        def forward(self, x):
            return self.second(self.first(x, self.edges).relu(), self.edges)

    return Graph


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(99, 16), nn.Linear(32, 99)
        self.lstm, self.gru = nn.LSTM(16, 32, batch_first=True), nn.GRU(32, 32, batch_first=True)

    def forward(self, tokens):
        return self.head(self.gru(self.lstm(self.embedding(tokens))[0])[0])


# BatchNorm over the two values that are left of two small images would be chaotic in any precision.
LARGER = {"": (8, 3, 64, 64)}
ZOO = {
    **{
        name: (build, LARGER if "" in shapes else shapes)
        for name, (build, shapes) in MODELS.items()
        if name not in ("losses", "MLP-Mixer")
    },
    "MLP-Mixer": MODELS["MLP-Mixer"],
    "LSTM and GRU": (Recurrent, {"tokens": (2, 16)}),
    "x-transformers, rotary": (x_transformers(rotary_pos_emb=True), {"x": (2, 16)}),
    "x-transformers, flash": (x_transformers(attn_flash=True), {"x": (2, 16)}),
    "x-transformers, GLU": (x_transformers(ff_glu=True, use_rmsnorm=True), {"x": (2, 16)}),
    "GCN": (geometric("GCNConv"), {"": (20, 16)}),
    "GraphSAGE": (geometric("SAGEConv"), {"": (20, 16)}),
    "GAT": (geometric("GATConv"), {"": (20, 16)}),
    "GraphTransformer": (geometric("TransformerConv"), {"": (20, 16)}),
}


def setup_of(name):
    build, shapes = ZOO[name]

    def setup(arm):
        model = build().to(arm.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        args, kwargs = inputs_of(shapes, arm.device)
        if name.startswith("x-transformers"):
            args, kwargs = [torch.randint(99, shapes["x"])], {}
        target = None

        def step():
            nonlocal target
            optimizer.zero_grad()
            with arm.autocast():
                made = model(*args, **kwargs)
                if not isinstance(made, torch.Tensor):
                    made = made[0]
                if target is None:
                    target = torch.randn(made.shape)
                loss = F.mse_loss(made, target)
            arm.scaler.scale(loss).backward()
            arm.scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    return setup


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=ZOO)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print(f"torch {torch.__version__}; {TOKENS}")
    errors = count = 0
    for name in options.only or ZOO:
        began = time.perf_counter()
        try:
            report = pytest_amp.measure(setup_of(name), static=True, policy="cuda", device="cpu")
        except ImportError as error:
            print(f"{name:<24} left out: {error}")
            continue
        except Exception as error:  # noqa: BLE001
            print(f"{name:<24} {type(error).__name__}: {str(error).splitlines()[0][:150]}")
            errors += 1
            continue
        count += 1
        found = [f"{each.severity} {each.code}" for each in report.findings]
        errors += report.verdict != "pass"
        print(
            f"{name:<24} {report.verdict:<5} loss_diff {report.loss_diff:.2%}, coverage "
            f"{report.coverage or 0:.0%}, {time.perf_counter() - began:.1f} s {' '.join(found)}",
            flush=True,
        )
        for each in report.findings:
            print(f"    {each.code} {each.location}: {each.message[:200]}")
    print(f"{count} measured, {errors} with an error")


if __name__ == "__main__":
    main()
