"""A training step of its own, with a GradScaler and gradient clipping."""

import pydoc_data.topics

import pytest
import torch
import torch.nn.functional as F
from torch import nn

TEXT = "".join(pydoc_data.topics.topics.values()).encode("ascii", "ignore")
CONTEXT, BATCH = 32, 8


class CharTransformer(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.embed, self.position = nn.Embedding(128, width), nn.Embedding(CONTEXT, width)
        self.block = nn.TransformerEncoderLayer(width, 4, 64, 0.1, batch_first=True)
        self.head = nn.Linear(width, 128)

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT, device=x.device)
        h = self.embed(x) + self.position.weight
        return self.head(self.block(h, src_mask=mask, is_causal=True))


@pytest.mark.parametrize("dtype", [pytest.param(d, marks=pytest.mark.amp(dtype=d, max_time=10))
                                   for d in ("bfloat16", "float16")])  # fmt: skip
def test_char_transformer(amp_benchmark, amp_device, dtype):
    def setup(arm):
        text = torch.tensor(list(TEXT))
        model = CharTransformer().to(amp_device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

        def step():
            at = torch.randint(len(text) - CONTEXT - 1, (BATCH, 1)) + torch.arange(CONTEXT)
            x, y = text[at].to(amp_device), text[at + 1].to(amp_device)
            optimizer.zero_grad(set_to_none=True)
            with arm.autocast():
                loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
            arm.scaler.scale(loss).backward()
            arm.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss

        return step

    result = amp_benchmark(setup)
    assert result.amp.losses[-1] < result.amp.losses[0]
