"""Measure a small language model of your own against GPT-2 of about its size, made from a config.

Both read the same text, which comes with Python, and compute by the same recipe.
"""

from pydoc_data.topics import topics

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

LENGTH, WIDTH = 64, 64


class OneLayer(nn.Module):
    """A GRU between an embedding and its transpose."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(128, WIDTH)
        self.layer = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, tokens):
        hidden, _ = self.layer(self.embedding(tokens))
        return F.linear(hidden, self.embedding.weight)


def gpt2():
    config = GPT2Config(vocab_size=128, n_positions=LENGTH, n_embd=WIDTH, n_layer=2, n_head=4,
                        bos_token_id=0, eos_token_id=0)  # fmt: skip
    return GPT2LMHeadModel(config)


def step_of(arm, model, logits):
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    text = "\n".join(topics[name] for name in sorted(topics))[: 16 * 8 * LENGTH]
    tokens = torch.tensor([min(ord(letter), 127) for letter in text], device=arm.device)
    batches = tokens.view(-1, 8, LENGTH)
    number = 0

    def step():
        nonlocal number
        batch, number = batches[number % len(batches)], number + 1
        optimizer.zero_grad(set_to_none=True)
        with arm.autocast():
            found = logits(batch[:, :-1])
            loss = F.cross_entropy(found.flatten(0, 1), batch[:, 1:].flatten())
        arm.scaler.scale(loss).backward()
        arm.scaler.step(optimizer)
        arm.scaler.update()
        return loss

    return step


@pytest.mark.amp(max_time=3, min_memory_reduction=0.2)
def test_against_gpt2(amp_benchmark, amp_device):
    def ours(arm):
        model = OneLayer().to(amp_device)
        return step_of(arm, model, model)

    def baseline(arm):
        model = gpt2().to(amp_device)
        return step_of(arm, model, lambda tokens: model(tokens).logits)

    report = amp_benchmark.against(ours, baseline, name="GPT-2")
    assert report.candidate.parameters < report.reference.parameters
